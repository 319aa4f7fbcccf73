"""Average precision as COCO defines it, and precision, recall and F1 against the score.

Shapes: N detections, T overlaps, R recalls, C classes. Where a class has no object, its figures are NaN.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mgdet_plugin.runs.analysis.matching import Matched

RECALLS = np.linspace(0, 1, 101)
GRID = np.linspace(0, 1, 101)  # scores at which the curves over the score are given


class Curves(NamedTuple):
    """Precision and recall of all classes: (T, R, C), and the highest recall (T, C)."""
    precision: np.ndarray
    recall: np.ndarray

    @property
    def average(self) -> np.ndarray:
        """AP of each overlap and class (T, C)."""
        return self.precision.mean(axis=1)


class Confidence(NamedTuple):
    """What is left above a score.

    Attributes:
        precision: At each score of :data:`GRID` (101,); NaN where nothing is left.
        recall: (101,).
        f1: (101,).
        threshold: The score at which F1 is highest; NaN where nothing is right.
        best: Precision, recall and F1 there; 0 where nothing is right, NaN without objects.
    """
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    threshold: float
    best: tuple[float, ...]


def precision_curves(matched: Matched) -> Curves:
    """Precision at each recall, of every overlap and class."""
    classes = len(matched.positives)
    precision = np.full((len(matched.thresholds), len(RECALLS), classes), np.nan)
    recall = np.full((len(matched.thresholds), classes), np.nan)
    for label in np.flatnonzero(matched.positives):
        of_class = np.flatnonzero(matched.labels == label)
        order = of_class[np.argsort(-matched.scores[of_class], kind='stable')]
        for level in range(len(matched.thresholds)):
            counted = order[~matched.skipped[level, order]]
            hits = matched.hit[level, counted]
            precision[level, :, label] = precision_at_recalls(hits, matched.positives[label])
            recall[level, label] = hits.sum() / matched.positives[label]
    return Curves(precision, recall)


def precision_at_recalls(hits: np.ndarray, positives: int) -> np.ndarray:
    """The highest precision at or beyond each recall of :data:`RECALLS`, 0 beyond the highest recall.

    Args:
        hits: Whether each detection is right, best score first (N,).
        positives: Objects to be found.

    Returns:
        (R,).
    """
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / positives, RECALLS, side='left')
    return np.append(envelope, 0.0)[at]


def confidence(scores: np.ndarray, hits: np.ndarray, positives: int) -> Confidence:
    """Precision, recall and F1 of the detections at or above a score, and the score of the highest F1.

    Args:
        scores: (N,), in any order.
        hits: Whether each is right (N,).
        positives: Objects to be found.
    """
    order = np.argsort(-scores, kind='stable')
    scores, right = scores[order], np.append(0, np.cumsum(hits[order]))

    def figures(count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of so many best detections."""
        found = right[count]
        precision = np.where(count > 0, found / np.maximum(count, 1), np.nan)
        return precision, found / max(positives, 1), 2 * found / np.maximum(count + positives, 1)

    curves = figures(np.searchsorted(-scores, -GRID, side='right'))
    ends = np.flatnonzero(np.append(scores[:-1] != scores[1:], True)[:len(scores)]) + 1  # equal scores go together
    if not right[-1]:
        nothing = 0.0 if positives else np.nan
        return Confidence(*curves, np.nan, (nothing, ) * 3)
    at = figures(ends)
    best = int(at[2].argmax())
    return Confidence(*curves, float(scores[ends[best] - 1]), (float(at[0][best]), float(at[1][best]),
                                                             float(at[2][best])))
