"""Which detection finds which object, by hand."""
import numpy as np
import pytest

from mgdet_plugin.runs.analysis.matching import match, match_all, sorted_result

HALF = np.array([0.5])


def one(truth, boxes, scores, labels=None, truth_labels=None, crowd=None):
    """A picture of these; boxes are [x, y, width, height]."""
    return sorted_result(1, '', truth, truth_labels or [0] * len(truth), crowd or [0] * len(truth),
                         [box[2] * box[3] for box in truth], boxes, scores, labels or [0] * len(boxes))


def test_overlaps():
    found = one([[0, 0, 10, 10], [0, 0, 100, 100]], [[0, 0, 10, 5], [200, 0, 10, 10]], [0.9, 0.8], crowd=[0, 1])
    assert found.overlaps.tolist() == [[0.5, 1.0], [0.0, 0.0]]
    assert one([], [[0, 0, 1, 1]], [1]).overlaps.shape == (1, 0)
    assert one([[0, 0, 0, 10]], [[0, 0, 0, 10]], [1]).overlaps.tolist() == [[0.0]]  # of no area


def test_the_best_score_takes_the_object_and_each_object_is_taken_once():
    overlaps = np.array([[0.6, 0.55], [0.9, 0.0], [0.0, 0.7]])
    other = np.array([[0.5, 0.5], [-1, -1], [0.2, 0.8]])  # of equal ones the last
    none = np.zeros((2, 2), bool)
    assert match(np.array([overlaps, other]), none, none, np.array([0.5, 0.65])).tolist() == [
        [[0, -1, 1], [-1, 0, 1]], [[1, -1, -1], [-1, -1, 1]]]
    assert match(np.zeros((1, 2, 0)), none[:1, :0], none[:1, :0], HALF).tolist() == [[[-1, -1]]]


def test_a_crowd_is_never_taken_and_comes_last():
    overlaps, crowd = np.array([[[1.0, 0.6], [1.0, 0.6], [1.0, 0.0]]]), np.array([[True, False]])
    assert match(overlaps, crowd, crowd, HALF).tolist() == [[[1, 0, 0]]]
    found = match_all([one([[0, 0, 100, 100]], [[0, 0, 9, 9], [0, 0, 8, 8]], [0.9, 0.8], crowd=[1])], 1, HALF)
    assert found.skipped.tolist() == [[True, True]] and not found.hit.any() and found.positives.tolist() == [0]


def test_what_is_out_of_the_range_of_areas_is_skipped():
    picture = one([[0, 0, 10, 10], [50, 50, 40, 40]], [[0, 0, 10, 10], [50, 50, 40, 40], [200, 200, 5, 5]],
                  [0.9, 0.8, 0.7])
    found = match_all([picture], 1, HALF, (0, 1024))
    assert found.positives.tolist() == [1]
    assert found.hit.tolist() == [[True, False, False]] and found.skipped.tolist() == [[False, True, False]]


def test_detections_are_sorted_and_counted_across_pictures():
    first = one([[0, 0, 10, 10]], [[0, 0, 10, 9], [0, 0, 10, 10]], [0.3, 0.8])
    second = one([[0, 0, 10, 10]], [[5, 5, 10, 10]], [0.9], labels=[1])
    assert first.scores.tolist() == [0.8, 0.3] and first.boxes[0, 3] == 10
    found = match_all([first, second], 2, HALF)
    assert found.image.tolist() == [0, 0, 1] and found.place.tolist() == [0, 1, 0]
    assert found.target.tolist() == [[0, -1, -1]] and found.positives.tolist() == [2, 0]
    nothing = match_all([], 2, HALF)
    assert nothing.hit.shape == (1, 0) and nothing.scores.shape == (0, )


def test_at_most_a_hundred_of_a_class():
    picture = one([[0, 0, 10, 10]], [[0, 0, 10, 10]] * 120, np.linspace(1, 0, 120), labels=[0] * 105 + [1] * 15)
    assert np.bincount(match_all([picture], 2, HALF).labels).tolist() == [100, 15]


@pytest.mark.parametrize('name', ['boxes', 'scores', 'labels'])
def test_a_result_is_not_changed(name):
    given = dict(boxes=np.ones((2, 4)), scores=np.array([0.1, 0.9]), labels=np.array([0, 1]))
    before = given[name].copy()
    sorted_result(1, '', [], [], [], [], **given)
    assert (given[name] == before).all()
