"""All that is measured of detections on a set, from the functions beside."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mgdet_plugin.runs.analysis.average_precision import Confidence, Curves, confidence, precision_curves
from mgdet_plugin.runs.analysis.calibration import NEAR, Calibration, calibration, matched_overlaps
from mgdet_plugin.runs.analysis.confusion import confusion_matrix
from mgdet_plugin.runs.analysis.error_kinds import KINDS, MISSED, RIGHT, Errors, find_errors
from mgdet_plugin.runs.analysis.matching import WHOLE, ImageResult, Matched, match_all

OVERLAPS = np.linspace(0.5, 0.95, 10)
SIZES = dict(small=(0.0, 32.0 ** 2), medium=(32.0 ** 2, 96.0 ** 2), large=(96.0 ** 2, WHOLE[1]))
"""COCO's ranges of areas, pixels²."""
USUAL = 0.3  # score from which detections are shown where no score is better than another


@dataclass(frozen=True)
class Analysis:
    """What is measured of weights on a set.

    Attributes:
        classes: Their names.
        results: Its pictures.
        matched: Detections and what they find, objects of every size.
        curves: Of objects of every size.
        sizes: Name of a range of sizes -> AP of each overlap and class (T, C).
        overall: Against the score, detections of all classes counted together.
        by_class: The same of each class.
        threshold: Score of the highest F1 of all classes together; a usual one where nothing is right.
        errors: Of every detection, whatever its score.
        confusion: At the threshold.
        overlaps: IoU of the detections with their objects, at the threshold.
        calibration: Of every detection.
    """
    classes: tuple[str, ...]
    results: Sequence[ImageResult]
    matched: Matched
    curves: Curves
    sizes: dict[str, np.ndarray]
    overall: Confidence
    by_class: list[Confidence]
    threshold: float
    errors: Errors
    confusion: np.ndarray
    overlaps: np.ndarray
    calibration: Calibration

    @property
    def mean_ap(self) -> float:
        """COCO's mean AP; NaN without objects."""
        return mean(self.curves.average)

    @property
    def shown(self) -> np.ndarray:
        """Whether a detection has the score of the threshold and counts (N,)."""
        return (self.matched.scores >= self.threshold) & ~self.matched.skipped[0]

    def counts(self) -> dict[str, int]:
        """Kind of error -> how many there are at the threshold, where all objects that are not found are missed."""
        shown = self.errors.kind[self.shown]
        found = {kind: int((shown == kind).sum()) for kind in (RIGHT, *KINDS)}
        return {**found, MISSED: int(self.matched.positives.sum()) - found[RIGHT]}


def mean(values: np.ndarray) -> float:
    """The mean of what is no NaN; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')


def analyse(results: Sequence[ImageResult], classes: Sequence[str]) -> Analysis:
    """Measure all.

    Args:
        results: The pictures; of equal scores the detections of an earlier picture count first.
        classes: Names, in the order of the labels.
    """
    count = len(classes)
    matched = match_all(results, count, OVERLAPS)
    sizes = {name: precision_curves(match_all(results, count, OVERLAPS, area)).average for name, area in SIZES.items()}
    counted = ~matched.skipped[0]
    scores, hits, labels = (each[counted] for each in (matched.scores, matched.hit[0], matched.labels))
    overall = confidence(scores, hits, int(matched.positives.sum()))
    threshold = USUAL if np.isnan(overall.threshold) else overall.threshold
    return Analysis(
        tuple(classes), results, matched, precision_curves(matched), sizes, overall,
        [confidence(scores[labels == label], hits[labels == label], int(matched.positives[label]))
         for label in range(count)],
        threshold, find_errors(results, matched), confusion_matrix(results, matched, threshold),
        matched_overlaps(results, match_all(results, count, [NEAR]), threshold), calibration(scores, hits))


