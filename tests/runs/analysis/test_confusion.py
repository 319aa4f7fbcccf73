"""Which class is taken for which, and where scores and places are held against what is right; by hand."""
import numpy as np
import pytest

from mgdet_plugin.runs.analysis.analysis import analyse
from mgdet_plugin.runs.analysis.calibration import calibration
from mgdet_plugin.runs.analysis.matching import sorted_result

CLASSES = ('cat', 'dog', 'owl')


def picture(truth, found, crowd=()):
    """Objects (x, class) and detections (x, class, score), all 100 pixels wide."""
    return sorted_result(0, '', [[x, 0, 100, 100] for x, _ in truth], [label for _, label in truth],
                         [index in crowd for index in range(len(truth))], [1e4] * len(truth),
                         [[x, 0, 100, 100] for x, *_ in found], [score for *_, score in found],
                         [label for _, label, _ in found])


def test_confusion_matrix():
    """A cat found and taken for a dog with a better score; an owl for a dog; a dog missed; a cat where nothing is."""
    found = analyse([
        picture([(0, 0), (300, 2)], [(0, 0, 0.8), (5, 1, 0.9), (300, 1, 0.9), (310, 1, 0.85), (900, 0, 0.9)]),
        picture([(0, 1), (300, 0), (600, 0)], [(300, 0, 0.95), (600, 0, 0.9), (900, 1, 0.05)]),
        picture([(0, 0)], [(0, 0, 0.9), (10, 1, 0.9)], crowd=[0])], CLASSES)
    assert found.threshold == 0.8
    assert found.confusion.tolist() == [
        [3, 0, 0, 0],  # cats
        [0, 0, 0, 1],  # dogs
        [0, 1, 0, 0],  # owls
        [1, 3, 0, 0]]  # on nothing, the crowd's dog among them
    objects = found.matched.positives.sum()
    assert found.confusion[:3].sum() == objects == 5


def test_calibration():
    """Two at 0.25 of which none is right, four at 0.75 of which three are: errors 0.25 and 0."""
    scores = np.array([0.75, 0.25, 0.75, 0.75, 0.25, 0.75])
    hits = np.array([True, False, True, True, False, False])
    found = calibration(scores, hits)
    assert found.counts.tolist() == [0, 0, 2, 0, 0, 0, 0, 4, 0, 0]
    assert found.score[[2, 7]].tolist() == [0.25, 0.75] and found.precision[[2, 7]].tolist() == [0, 0.75]
    assert np.isnan(found.score[0]) and found.error == pytest.approx(2 / 6 * 0.25) and found.confident_error == 0
    assert calibration(np.array([1.0, 0.0]), np.array([True, False])).counts[[0, 9]].tolist() == [1, 1]


def test_overlaps_of_what_is_found():
    """IoU of boxes shifted by 0, 20 and 50 of 100 pixels; that of a worse score than the best F1's is left out."""
    found = analyse([picture([(0, 0), (300, 0), (600, 0), (900, 0)],
                             [(0, 0, 0.9), (320, 0, 0.9), (650, 0, 0.95), (940, 0, 0.1)])], CLASSES)
    assert found.threshold == 0.9
    assert sorted(found.overlaps) == pytest.approx([50 / 150, 80 / 120, 1])
