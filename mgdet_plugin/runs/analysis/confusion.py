"""Which class is taken for which."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mgdet_plugin.runs.analysis.matching import ImageResult, Matched, match


def confusion_matrix(results: Sequence[ImageResult], matched: Matched, threshold: float) -> np.ndarray:
    """Objects by their class and that of the detection on them.

    What finds an object of its own class is counted first; then what is left is matched whatever its class.

    Args:
        results: The pictures.
        matched: Their detections; the first overlap is the one from which a detection is on an object.
        threshold: Least score of a detection that counts.

    Returns:
        Counts (C + 1, C + 1): row of the object's class, column of the detection's; the last row is of detections on
        nothing, the last column of objects without a detection.
    """
    classes = len(matched.positives)
    counts = np.zeros((classes + 1, classes + 1), int)
    scored = matched.scores >= threshold
    starts = np.searchsorted(matched.image, np.arange(len(results) + 1))
    for index, each in enumerate(results):
        inside = np.arange(starts[index], starts[index + 1])
        inside = inside[scored[inside] & ~matched.skipped[0, inside]]
        right = matched.hit[0, inside]
        found = matched.labels[inside[right]]
        np.add.at(counts, (found, found), 1)
        free = ~each.crowd
        free[matched.target[0, inside[right]]] = False
        others, objects = matched.place[inside[~right]], np.flatnonzero(free)
        no_crowd = np.zeros((1, len(objects)), bool)
        [[on]] = match(each.overlaps[None][:, others[:, None], objects], no_crowd, no_crowd, matched.thresholds[:1])
        truth = np.where(on >= 0, each.truth_labels[objects[on]], classes) if len(objects) else np.full(
            len(others), classes)
        np.add.at(counts, (truth, each.labels[others]), 1)
        lost = np.delete(objects, on[on >= 0])
        np.add.at(counts, (each.truth_labels[lost], np.full(len(lost), classes)), 1)
    return counts
