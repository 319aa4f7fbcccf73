"""Whether scores say how often a detection is right, and how well the boxes of those that are lie on their objects."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mgdet_plugin.runs.analysis.matching import ImageResult, Matched

BINS = 10
CONFIDENT = 0.3  # from which on the second error is taken (Küppers et al., CVPR workshops 2020, arXiv 2004.13546)
NEAR = 0.1  # least overlap that a box is measured at
OVERLAP_EDGES = np.linspace(NEAR, 1, 19)  # in steps of 0.05


class Calibration(NamedTuple):
    """Detections by their score, in bins of equal width.

    Attributes:
        counts: Detections in each bin (10,).
        score: Their mean score, NaN of an empty bin (10,).
        precision: The share of them that is right, NaN of an empty bin (10,).
        error: Expected calibration error: the mean distance of score and share, weighted by the detections.
        confident_error: The same of the detections with a score of at least 0.3 alone.
    """
    counts: np.ndarray
    score: np.ndarray
    precision: np.ndarray
    error: float
    confident_error: float


def calibration(scores: np.ndarray, hits: np.ndarray) -> Calibration:
    """Hold scores in [0, 1] (N,) against whether each detection is right (N,) (Guo et al., ICML 2017, eq. 3)."""
    confident = scores >= CONFIDENT
    return Calibration(*_binned(scores, hits), _error(scores, hits), _error(scores[confident], hits[confident]))


def _binned(scores: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    count = np.bincount(places, minlength=BINS)
    sums = (np.bincount(places, weights, minlength=BINS) for weights in (scores, hits.astype(float)))
    mean, share = (np.where(count > 0, each / np.maximum(count, 1), np.nan) for each in sums)
    return count, mean, share


def _error(scores: np.ndarray, hits: np.ndarray) -> float:
    count, mean, share = _binned(scores, hits)
    return float(np.nansum(count * abs(mean - share)) / count.sum()) if len(scores) else float('nan')


def matched_overlaps(results: Sequence[ImageResult], near: Matched, threshold: float) -> np.ndarray:
    """Overlap (IoU) with its object of each detection that has the score and finds one of its class, in [0.1, 1].

    Args:
        results: The pictures.
        near: Their detections, the first overlap asked for :data:`NEAR`.
        threshold: Least score.
    """
    chosen = np.flatnonzero(near.hit[0] & (near.scores >= threshold))
    return np.array([results[near.image[each]].overlaps[near.place[each], near.target[0, each]] for each in chosen])
