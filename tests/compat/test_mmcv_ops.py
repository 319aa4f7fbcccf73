"""The operations of mmcv a dense detector uses, against examples worked by hand and plain loops.

They are called through ``mmcv.ops``: with compiled mmcv the same tests check the compiled operations, which is how the
stand-in is known to equal them.

Worked boxes, in pixels:
    A (0, 0, 10, 10)    area 100
    B (0, 0, 10, 5)     area 50, inside A: IoU(A, B) = 50 / 100 = 0.5
    C (20, 20, 30, 30)  apart
"""
from __future__ import annotations

import math
import time

import mgdet_plugin  # noqa: F401  mmcv.ops cannot be imported before it

# isort: split
import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, bbox_overlaps, nms, nms_match, soft_nms
from torch import Tensor

from mgdet_plugin.compat import has_compiled_ops, mmcv_ops

BOXES = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 5.], [20., 20., 30., 30.]])
SCORES = torch.tensor([0.9, 0.8, 0.7])


def random_boxes(count: int, seed: int, side: int = 40) -> tuple[Tensor, Tensor]:
    """Return boxes (N, 4) on whole pixels, some without area, and scores (N,) that are all different."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, side, (count, 2), generator=generator)
    boxes = torch.cat([corner, corner + torch.randint(0, 12, (count, 2), generator=generator)], dim=1).float()
    return boxes, (torch.randperm(count, generator=generator) + 1) / (count + 1)


def iou(box: np.ndarray, others: np.ndarray, offset: int = 0) -> np.ndarray:
    """Return the IoU (N,) of a box (4,) with others (N, 4), 0 where neither has an area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    inter = sides.clip(0).prod(1)
    union = (box[2:] - box[:2] + offset).prod() + (others[:, 2:] - others[:, :2] + offset).prod(1) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def loop_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """Suppress one box at a time."""
    array, kept = boxes.numpy(), []
    for index in scores.argsort(descending=True).tolist():
        if not kept or (iou(array[index], array[kept], offset) <= np.float32(threshold)).all():
            kept.append(index)
    return kept


@pytest.mark.parametrize(('threshold', 'offset', 'kept'), [
    (0.5, 0, [0, 1, 2]),  # an overlap equal to the threshold does not suppress
    (0.49, 0, [0, 2]),
    (0.5, 1, [0, 2]),  # sides of 11 and 6 pixels: 66 / 121 = 0.545
    (0.55, 1, [0, 1, 2]),
])
def test_nms_worked(threshold, offset, kept):
    dets, inds = nms(BOXES, SCORES, threshold, offset=offset)
    assert inds.tolist() == kept
    torch.testing.assert_close(dets, torch.cat([BOXES, SCORES[:, None]], dim=1)[kept])


def test_nms_suppressed_box_suppresses_nothing():
    boxes = torch.tensor([[0., 0., 10., 10.], [4., 0., 14., 10.], [8., 0., 18., 10.]])  # neighbours: 60 / 140
    assert nms(boxes, torch.tensor([0.7, 0.8, 0.9]), 0.4)[1].tolist() == [2, 0]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize(('count', 'threshold'), [(1, 0.5), (60, 0.0), (60, 0.3), (700, 0.5), (1500, 0.7)])
def test_nms_equals_a_loop(count, threshold, offset):
    boxes, scores = random_boxes(count, seed=count)
    assert nms(boxes, scores, threshold, offset=offset)[1].tolist() == loop_nms(boxes, scores, threshold, offset)


def test_nms_over_many_blocks_equals_a_loop(monkeypatch):
    monkeypatch.setattr('mgdet_plugin.compat.mmcv_ops.PAIRS_AT_ONCE', 1)
    boxes, scores = random_boxes(400, seed=3)
    assert mmcv_ops.nms(boxes, scores, 0.4, 0).tolist() == loop_nms(boxes, scores, 0.4, 0)


def test_nms_options_of_the_wrapper():
    _, inds = nms(BOXES.numpy(), SCORES.numpy(), 0.6, score_threshold=0.75)
    assert isinstance(inds, np.ndarray)
    assert inds.tolist() == [0, 1]
    assert nms(BOXES, SCORES, 0.6, max_num=1)[1].tolist() == [0]
    dets, inds = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert inds.shape == (0, ) and inds.dtype == torch.int64


def test_nms_of_ten_thousand_boxes_is_quick():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(10_000, 2, generator=generator) * 1000
    boxes = torch.cat([corner, corner + 5 + torch.rand(10_000, 2, generator=generator) * 100], dim=1)
    scores = torch.rand(10_000, generator=generator)
    start = time.process_time()
    kept = nms(boxes, scores, 0.5)[1]
    assert 5_000 < len(kept) < 8_000
    assert time.process_time() - start < 5  # a second at most when nothing else runs


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_stand_in_nms_takes_every_float_type(dtype):
    boxes = (BOXES * 32).to(dtype)  # areas above the largest float16
    assert mmcv_ops.nms(boxes, SCORES.to(dtype), 0.49, 0).tolist() == [0, 2]
    assert mmcv_ops.nms(boxes, SCORES.to(dtype), 0.5, 0).tolist() == [0, 1, 2]


def test_batched_nms_separates_classes():
    boxes = BOXES[[0, 0, 1, 2]]
    scores, classes = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 1])
    config = {'type': 'nms', 'iou_threshold': 0.4}
    dets, inds = batched_nms(boxes, scores, classes, config)
    assert inds.tolist() == [0, 1, 3]
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], dim=1)[[0, 1, 3]])
    assert batched_nms(boxes, scores, classes, config, class_agnostic=True)[1].tolist() == [0, 3]
    assert batched_nms(boxes, scores, classes, {**config, 'split_thr': 2})[1].tolist() == [0, 1, 3]


def test_batched_soft_nms():
    config = {'type': 'soft_nms', 'iou_threshold': 0.3, 'method': 'linear', 'min_score': 0.01}
    dets, inds = batched_nms(BOXES, SCORES, torch.tensor([0, 0, 0]), config)
    assert inds.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7, 0.4]))


@pytest.mark.parametrize(('method', 'lowered'), [
    ('linear', 0.8 * (1 - 0.5)),
    ('gaussian', 0.8 * math.exp(-0.25 / 0.5)),
])
def test_soft_nms_worked(method, lowered):
    dets, inds = soft_nms(BOXES, SCORES, iou_threshold=0.5, sigma=0.5, method=method)  # an overlap of 0.5 counts
    assert inds.tolist() == [0, 2, 1]
    torch.testing.assert_close(dets[:, :4], BOXES[[0, 2, 1]])
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.7, lowered]))


def test_soft_nms_drops_below_the_least_score():
    assert soft_nms(BOXES, SCORES, iou_threshold=0.5, method='naive')[1].tolist() == [0, 2]
    assert soft_nms(BOXES, SCORES, iou_threshold=0.5, method='linear', min_score=0.41)[1].tolist() == [0, 2]
    # with pixels counted at both ends the overlap is 66 / 121 and the score 0.8 * 55 / 121
    dets, _ = soft_nms(BOXES, SCORES, iou_threshold=0.5, method='linear', offset=1)
    torch.testing.assert_close(dets[2, 4], torch.tensor(0.8 * 55 / 121))


def loop_soft_nms(boxes: Tensor, scores: Tensor, method: str, least: float) -> tuple[list[int], list[float]]:
    """Soften one box at a time, a dropped box replaced by the last one. Threshold 0.3, sigma 0.5."""
    left = list(zip(scores.numpy(), range(len(scores))))
    done = []
    while left:
        best = max(range(len(left)), key=lambda place: left[place][0])
        left[0], left[best] = left[best], left[0]
        done.append(left.pop(0))
        place = 0
        while place < len(left):
            score, index = left[place]
            overlap = iou(boxes[done[-1][1]].numpy(), boxes[index][None].numpy())[0]
            factor = {
                'naive': np.float32(overlap < 0.3),
                'linear': 1 - overlap if overlap >= 0.3 else np.float32(1),
                'gaussian': np.exp(-overlap**2 / np.float32(0.5))
            }[method]
            if score * factor >= least:
                left[place] = (score * factor, index)
                place += 1
            else:
                left[place] = left[-1]
                left.pop()
    return [index for _, index in done], [float(score) for score, _ in done]


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('tied', [False, True])
def test_soft_nms_equals_a_loop(method, tied):
    boxes, scores = random_boxes(120, seed=5)
    boxes[:, 2:] += 1  # every box has an area
    scores = (scores * 8).ceil() / 8 if tied else scores
    kept, lowered = loop_soft_nms(boxes, scores, method, least=0.2)
    dets, inds = soft_nms(boxes, scores, iou_threshold=0.3, sigma=0.5, min_score=0.2, method=method)
    assert 10 < len(kept) < 120
    assert inds.tolist() == kept
    torch.testing.assert_close(dets[:, 4], torch.tensor(lowered))


def test_soft_nms_leaves_its_inputs_alone():
    boxes, scores = random_boxes(20, seed=1)
    before = boxes.clone(), scores.clone()
    soft_nms(boxes, scores)
    assert torch.equal(boxes, before[0]) and torch.equal(scores, before[1])


@pytest.mark.parametrize(('threshold', 'groups'), [(0.5, [[0, 1], [2]]), (0.51, [[0], [1], [2]])])
def test_nms_match_worked(threshold, groups):
    dets = torch.cat([BOXES, SCORES[:, None]], dim=1)
    assert [group.tolist() for group in nms_match(dets, threshold)] == groups
    shuffled = dets[[2, 1, 0]]
    assert [group.tolist() for group in nms_match(shuffled.numpy(), threshold)] == [
        [2 - index for index in group] for group in groups]


def test_nms_match_groups_every_box_once():
    boxes, scores = random_boxes(80, seed=7)
    groups = [group.tolist() for group in nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3)]
    assert sorted(index for group in groups for index in group) == list(range(80))
    left = scores.argsort(descending=True).tolist()
    for group in groups:
        overlaps = iou(boxes[left[0]].numpy(), boxes[left].numpy())
        expected = [index for place, index in enumerate(left) if place == 0 or overlaps[place] >= np.float32(0.3)]
        assert group == expected
        left = [index for index in left if index not in group]


def test_bbox_overlaps_worked():
    pixel_b = 66 / 121  # offset 1: sides of 11 and 6 pixels
    torch.testing.assert_close(bbox_overlaps(BOXES, BOXES[:2]), torch.tensor([[1., 0.5], [0.5, 1.], [0., 0.]]))
    torch.testing.assert_close(bbox_overlaps(BOXES, BOXES[:1], 'iof'), torch.tensor([[1.], [1.], [0.]]))
    torch.testing.assert_close(bbox_overlaps(BOXES[:1], BOXES, 'iof'), torch.tensor([[1., 0.5, 0.]]))
    torch.testing.assert_close(bbox_overlaps(BOXES, BOXES[[1, 0, 1]], aligned=True), torch.tensor([0.5, 0.5, 0.]))
    torch.testing.assert_close(bbox_overlaps(BOXES[:1], BOXES, offset=1), torch.tensor([[1., pixel_b, 0.]]))
    torch.testing.assert_close(
        bbox_overlaps(BOXES[:2], BOXES[[1, 0]], 'iof', aligned=True, offset=1), torch.tensor([pixel_b, 1.]))


@pytest.mark.parametrize('dtype', [
    pytest.param(torch.float16, marks=pytest.mark.skipif(has_compiled_ops(), reason='overflows in compiled mmcv')),
    torch.float32, torch.float64])
def test_bbox_overlaps_keeps_the_dtype_and_takes_empty_sets(dtype):
    overlaps = bbox_overlaps(BOXES.to(dtype), BOXES.to(dtype))
    assert overlaps.dtype == dtype
    torch.testing.assert_close(overlaps, torch.tensor([[1., 0.5, 0.], [0.5, 1., 0.], [0., 0., 1.]], dtype=dtype))
    assert bbox_overlaps(BOXES.to(dtype), BOXES[:0].to(dtype)).shape == (3, 0)


def test_bbox_overlaps_equals_a_loop():
    (first, _), (second, _) = random_boxes(30, seed=1), random_boxes(40, seed=2)
    for offset in (0, 1):
        expected = np.stack([iou(box.numpy(), second.numpy(), offset) for box in first])
        found = bbox_overlaps(first, second, offset=offset).nan_to_num(nan=0.0)
        torch.testing.assert_close(found, torch.from_numpy(expected))


@pytest.mark.skipif(not has_compiled_ops(), reason='mmcv has no compiled ops to compare with')
def test_stand_in_equals_the_compiled_operations():
    """To the last bit but for the exponential, with tied scores and boxes without area among 3,000."""
    import mmcv._ext as compiled
    boxes, scores = random_boxes(3_000, seed=9, side=300)
    boxes, scores = boxes * 1.1 + 0.3, (scores * 500).ceil() / 500
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    for offset in (0, 1):
        for threshold in (0.0, 0.3, 0.7):
            kept = [each.nms(boxes, scores, iou_threshold=threshold, offset=offset) for each in (compiled, mmcv_ops)]
            assert torch.equal(*kept)
    for threshold in (0.1, 0.5):
        assert compiled.nms_match(dets, threshold) == mmcv_ops.nms_match(dets, threshold)
    for method in (mmcv_ops.NAIVE, mmcv_ops.LINEAR, mmcv_ops.GAUSSIAN):
        lowered, kept = torch.zeros(2, 1_000, 5), []
        for each, rows in zip((compiled, mmcv_ops), lowered):
            sized = boxes[:1_000] + torch.tensor([0., 0., 1., 1.])
            kept.append(each.softnms(sized, scores[:1_000], rows, iou_threshold=0.3, sigma=0.5, min_score=0.1,
                                     method=method, offset=0))
        assert torch.equal(*kept)
        torch.testing.assert_close(lowered[0, :len(kept[0])], lowered[1, :len(kept[0])], rtol=1e-5, atol=0)
    for mode in (mmcv_ops.IOU, mmcv_ops.IOF):
        ious = torch.zeros(2, 200, 300)
        for each, found in zip((compiled, mmcv_ops), ious):
            each.bbox_overlaps(boxes[:200], boxes[200:500], found, mode=mode, aligned=False, offset=1)
        assert torch.equal(*ious)
