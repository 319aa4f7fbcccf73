"""Six kinds of error and what each costs, after TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115).

A cost is the AP at an overlap of 0.5 that is gained when errors of one kind alone are mended (the paper's section 2.3);
what is lost to several kinds at once is in none of them, so they do not sum to what is missing.
Shapes: N detections, C classes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgdet_plugin.runs.analysis.average_precision import precision_at_recalls
from mgdet_plugin.runs.analysis.matching import ImageResult, Matched

FOREGROUND, BACKGROUND = 0.5, 0.1  # overlaps: the paper's t_f and t_b
CLASS, BOX, BOTH, DUPLICATE, FALSE, MISSED = KINDS = ('class', 'box', 'both', 'duplicate', 'background', 'missed')
MEANING = {
    CLASS: 'on an object of another class',
    BOX: 'of the right class, but its box overlaps the object by less than 0.5',
    BOTH: 'near an object of another class, overlapping it by less than 0.5',
    DUPLICATE: 'a second detection of an object that was found already',
    FALSE: 'where there is no object',
    MISSED: 'an object that nothing was found of, not even with an error of class or box'}
RIGHT, SKIPPED = 'right', 'skipped'


@dataclass(frozen=True)
class Errors:
    """Every detection by kind.

    Attributes:
        kind: One of :data:`KINDS` but the last, :data:`RIGHT` or :data:`SKIPPED` of each detection (N,).
        target: Number of the object it finds or was meant for, -1 for none, counted over all pictures (N,).
        missed: Numbers of the objects that are missed.
        object_labels: Class of every object that counts, -1 of a crowd, over all pictures.
        gained: Kind -> AP gained where it is mended.
        average: AP at an overlap of 0.5 as it is.
    """
    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray
    object_labels: np.ndarray
    gained: dict[str, float]
    average: float


def find_errors(results: Sequence[ImageResult], matched: Matched) -> Errors:
    """Tell the kinds of error.

    Args:
        results: The pictures.
        matched: Their detections, objects of every size, the first overlap :data:`FOREGROUND`.
    """
    first = np.cumsum([0, *(len(each.truth) for each in results)])
    labels = np.concatenate([np.zeros(0, int), *(np.where(each.crowd, -1, each.truth_labels) for each in results)])
    kind = np.where(matched.skipped[0], SKIPPED, np.where(matched.hit[0], RIGHT, FALSE)).astype(object)
    target = np.where(matched.hit[0], matched.target[0] + first[matched.image], -1)
    starts = np.searchsorted(matched.image, np.arange(len(results) + 1))
    for index, each in enumerate(results):
        inside = slice(starts[index], starts[index + 1])
        wrong = np.flatnonzero(kind[inside] == FALSE) + starts[index]
        if len(wrong) and len(each.truth):
            kind[wrong], on = _kinds(each, matched.place[wrong], matched.labels[wrong])
            target[wrong] = np.where(on >= 0, on + first[index], -1)
    seen = np.zeros(len(labels), bool)
    seen[target[np.isin(kind, (RIGHT, CLASS, BOX))]] = True
    missed = np.flatnonzero(~seen & (labels >= 0))
    errors = Errors(kind, target, missed, labels, {}, 0.0)
    average = mended(matched, errors, None)
    return Errors(kind, target, missed, labels, {name: mended(matched, errors, name) - average for name in KINDS},
                  average)


def _kinds(result: ImageResult, places: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each wrong detection on a picture with objects, and the object it was meant for, -1 for none.

    Where several fit, the truth that is overlapped by 0.5 decides before others, and the right class before another.
    """
    overlaps = np.where(result.crowd, 0.0, result.overlaps[places])
    same = result.truth_labels == labels[:, None]
    of_class, of_others = np.where(same, overlaps, 0.0), np.where(same, 0.0, overlaps)
    best, other = of_class.max(axis=1), of_others.max(axis=1)
    cases = [best >= FOREGROUND, other >= FOREGROUND, best >= BACKGROUND, other >= BACKGROUND]
    kinds = np.select(cases, [DUPLICATE, CLASS, BOX, BOTH], FALSE)
    on = np.select(cases[:3], [of_class.argmax(axis=1), of_others.argmax(axis=1), of_class.argmax(axis=1)], -1)
    return kinds, on


def mended(matched: Matched, errors: Errors, kind: str | None) -> float:
    """AP at an overlap of 0.5 with all errors of one kind mended, or as it is (None).

    A wrong class or box is set right, and of all that then find one object the best score stays; other wrong detections
    are taken out; missed objects are no longer asked for (a class left without objects has 1 without detections that
    are wrong, else 0).
    """
    right = errors.kind == RIGHT
    kept = errors.kind != SKIPPED
    labels, positives = matched.labels, matched.positives
    if kind in (CLASS, BOX):
        fixed = errors.kind == kind
        right = _best_of_each(matched.scores, errors.target, right | fixed)
        kept = kept & (right | ~(fixed | (errors.kind == RIGHT)))
        labels = np.where(fixed & right, np.append(errors.object_labels, -1)[errors.target], labels)
    elif kind == MISSED:
        positives = positives - np.bincount(errors.object_labels[errors.missed], minlength=len(positives))
    elif kind is not None:
        kept = kept & (errors.kind != kind)
    order = np.flatnonzero(kept)[np.argsort(-matched.scores[kept], kind='stable')]
    found = []
    for label in np.flatnonzero(matched.positives):
        hits = right[order[labels[order] == label]]
        found.append(precision_at_recalls(hits, positives[label]).mean() if positives[label] else float(not len(hits)))
    return float(np.mean(found)) if found else float('nan')


def _best_of_each(scores: np.ndarray, target: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Which candidates have the highest score of those with one target (N,)."""
    order = np.flatnonzero(candidates)[np.argsort(-scores[candidates], kind='stable')]
    _, first = np.unique(target[order], return_index=True)
    best = np.zeros(len(scores), bool)
    best[order[first]] = True
    return best
