"""The operations of mmcv that mmdet's one-stage detectors use, against examples worked by hand and plain loops.

They are called through ``mmcv.ops``: with compiled mmcv the same tests check the compiled operations, which is how the
stand-in is known to equal them. Compiled mmcv has its focal loss on CUDA only.

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
from mmcv.ops import batched_nms, nms, sigmoid_focal_loss
from torch import Tensor
from torch.autograd import gradcheck

from mgdet_plugin.compat import has_compiled_ops, mmcv_ops

BOXES = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 5.], [20., 20., 30., 30.]])
SCORES = torch.tensor([0.9, 0.8, 0.7])
FOCAL_DEVICES = ['cuda'] if torch.cuda.is_available() else []
if not has_compiled_ops():
    FOCAL_DEVICES.append('cpu')
NO_FOCAL = 'compiled mmcv has its focal loss on CUDA only, and there is no CUDA device'
focal_device = pytest.mark.parametrize(
    'device', FOCAL_DEVICES or [pytest.param('cpu', marks=pytest.mark.skip(reason=NO_FOCAL))])


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


@pytest.mark.skipif(not has_compiled_ops(), reason='mmcv has no compiled ops to compare with')
def test_stand_in_equals_the_compiled_operations():
    """To the last bit, with tied scores and boxes without area among 3,000."""
    import mmcv._ext as compiled
    boxes, scores = random_boxes(3_000, seed=9, side=300)
    boxes, scores = boxes * 1.1 + 0.3, (scores * 500).ceil() / 500
    for offset in (0, 1):
        for threshold in (0.0, 0.3, 0.7):
            kept = [each.nms(boxes, scores, iou_threshold=threshold, offset=offset) for each in (compiled, mmcv_ops)]
            assert torch.equal(*kept)


@focal_device
def test_sigmoid_focal_loss_worked(device):
    """At logit 0, p = 1/2: the target's loss is a/4 ln 2, another class's (1 - a)/4 ln 2. Class 2 is background."""
    logits, target = torch.zeros(2, 2, device=device), torch.tensor([0, 2], device=device)
    quarter = 0.25 * math.log(2)
    expected = torch.tensor([[0.25 * quarter, 0.75 * quarter], [0.75 * quarter, 0.75 * quarter]], device=device)
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'mean'), expected.sum() / 2)
    weighted = sigmoid_focal_loss(logits[:1], target[:1], 2.0, 0.25, torch.tensor([3., 5.], device=device), 'none')
    torch.testing.assert_close(weighted, 3 * expected[:1])  # by the class of the sample, not of the column


@focal_device
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss_gradient(device, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 1], device=device)
    weight = torch.tensor([1., 2., 0.5, 1.], dtype=torch.float64, device=device)[:3]
    assert gradcheck(lambda value: sigmoid_focal_loss(value, target, gamma, 0.25, None, 'mean'), (logits, ))
    known = target < 3
    assert gradcheck(lambda value: sigmoid_focal_loss(value[known], target[known], gamma, 0.25, weight, 'sum'),
                     (logits, ))


@focal_device
def test_sigmoid_focal_loss_equals_mmdet_on_moderate_logits(device):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 4, generator=generator).to(device).requires_grad_()
    target = torch.randint(0, 5, (50, ), generator=generator).to(device)
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction='none')
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value.sum(), logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*slopes)


@focal_device
def test_sigmoid_focal_loss_is_finite_at_extreme_logits(device):
    logits = torch.tensor([[200., -200.], [-200., 200.]], device=device, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0], device=device), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    # right ones cost nothing, wrong ones the logarithm of the smallest float32, not of zero
    floor = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss.detach().cpu(), torch.tensor([[0., 0.], [0.25 * floor, 0.75 * floor]]))


@pytest.mark.skipif(has_compiled_ops(), reason='the compiled operation asserts in C++ instead')
def test_a_target_above_background_is_refused():
    with pytest.raises(ValueError, match='at most the number of classes, 2, got 3'):
        sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([3]), 2.0, 0.25, None, 'none')
