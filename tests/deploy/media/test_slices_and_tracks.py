"""Small objects on large pictures, each once; and the same object from frame to frame."""
from itertools import pairwise

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from mgdet_plugin.deploy.media.slices import detect_in_slices, merged, windows
from mgdet_plugin.deploy.media.tracks import make_tracker
from mgdet_plugin.models.maths.suppression import NMSOptions, suppress
from tests.support.media import SquareFinder, finder, squares


@pytest.mark.parametrize('size', [(640, 480), (600, 1000), (97, 33), (64, 64), (20, 400)])
def test_slices_cover_a_picture_and_overlap_by_a_quarter(size):
    found = windows(*size, (64, 64))
    seen = np.zeros(size[::-1], int)
    for left, top, right, bottom in found:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        assert (right - left, bottom - top) == (min(64, size[0]), min(64, size[1]))
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1 and len(set(found)) == len(found)
    for axis in (0, 1):
        starts = sorted({window[axis] for window in found})
        assert all(later - earlier <= 48 for earlier, later in pairwise(starts))


def found_on(picture, side=64, batch=4, **fields):
    predictor = finder(**fields)
    sample = detect_in_slices(predictor, picture, (side, side), batch)
    boxes = [(*map(round, box), label) for box, label in zip(sample.pred_instances.bboxes.tolist(),
                                                            sample.pred_instances.labels.tolist())]
    return sorted(boxes), predictor._backend.batches


def test_each_object_counts_once_wherever_slices_cut_it():
    """Squares of 12 pixels, closer together than slices are apart: some lie in two slices or four, some are cut."""
    placed = [(left, top, 12, (left + top) % 3) for left in range(3, 300, 30) for top in range(5, 200, 28)]
    boxes, batches = found_on(squares(*placed, size=(320, 220)), smallest=0.1)
    assert boxes == sorted((left, top, left + 12, top + 12, label) for left, top, _, label in placed)
    assert max(batches) == 4 and sum(batches) == 1 + len(windows(320, 220, (64, 64)))


def test_without_slices_they_are_too_small_and_a_large_object_is_found_on_the_whole_picture():
    picture = squares((100, 10, 150, 0), (20, 180, 12, 2), size=(320, 220))
    assert found_on(picture, side=400, smallest=0.1) == ([(100, 10, 250, 160, 0)], [1])
    assert found_on(picture, smallest=0.1)[0] == [(20, 180, 32, 192, 2), (100, 10, 250, 160, 0)]


def test_what_fits_into_a_slice_is_not_taken_from_the_whole_picture(monkeypatch):
    """There it is too small to be seen well."""
    find = SquareFinder._find

    def dreams(self, pixels):
        sample = find(self, pixels)
        if pixels.shape[1] > 64:
            sample.pred_instances = InstanceData(bboxes=torch.tensor([[10., 10, 40, 40], [10, 90, 90, 190]]),
                                                 scores=torch.tensor([.9, .9]), labels=torch.tensor([1, 2]))
        return sample

    monkeypatch.setattr(SquareFinder, '_find', dreams)
    assert found_on(squares((200, 100, 20, 0), size=(320, 220)))[0] == [(10, 90, 90, 190, 2), (200, 100, 220, 120, 0)]


def test_whole_boxes_are_merged_as_the_model_s_are():
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 100
    found = InstanceData(bboxes=torch.cat((corners, corners + 10 + torch.rand(300, 2) * 10), 1),
                         scores=torch.rand(300), labels=torch.arange(300))
    left = suppress(found.bboxes, found.scores, found.labels, NMSOptions())
    kept = merged(found, torch.zeros(300, dtype=torch.bool))
    assert kept.labels.tolist() == left.indices.tolist() and 50 < len(kept) < 250


def test_a_cut_box_counts_where_nothing_better_covers_it():
    found = InstanceData(bboxes=torch.tensor([[0., 0, 20, 20], [0, 0, 20, 9], [50, 0, 70, 9], [64, 0, 75, 30]]),
                         scores=torch.tensor([.4, .9, .8, .7]), labels=torch.arange(4))
    assert merged(found, torch.tensor([False, True, True, True])).labels.tolist() == [2, 3, 0]


def follow(*frames, fps=10.0, least=0.5):
    """(x, score) of the objects of 20 pixels of each frame -> their tracks, None for none, by falling x."""
    track, seen = make_tracker(fps), []
    for index, frame in enumerate(frames):
        found = InstanceData(bboxes=torch.tensor([[x, 10, x + 20, 30] for x, _ in frame]).float().reshape(-1, 4),
                             scores=torch.tensor([score for _, score in frame]), labels=torch.zeros(len(frame)).long())
        seen.append([(each.corners[0], each.track) for each in track(found, [least] * len(frame), index / fps)])
    return seen


@pytest.mark.filterwarnings('error')
def test_objects_keep_their_numbers():
    pytest.importorskip('trackers')
    seen = follow(*[[(10 + 2 * index, 0.9), (200 - 3 * index, 0.6)] for index in range(6)])
    assert [[x for x, _ in frame] for frame in seen] == [[10 + 2 * index, 200 - 3 * index] for index in range(6)]
    assert seen[0] == [(10, None), (200, None)]  # once seen is not yet followed
    assert [[track for _, track in frame] for frame in seen[1:]] == [[0, 1]] * 5


def test_a_low_score_counts_where_it_goes_on_with_a_track_alone():
    pytest.importorskip('trackers')
    seen = follow([(10, 0.9)], [(12, 0.9)], [(14, 0.3), (300, 0.3)], [], [(18, 0.9)])
    assert seen == [[(10, None)], [(12, 0)], [(14, 0)], [], [(18, 0)]]


def test_a_track_is_lost_after_a_second():
    pytest.importorskip('trackers')
    seen = follow(*[[(10, 0.9)]] * 3, *[[]] * 14, *[[(10, 0.9)]] * 3)
    assert [frame[0][1] for frame in seen if frame] == [None, 0, 0, None, 1, 1]
