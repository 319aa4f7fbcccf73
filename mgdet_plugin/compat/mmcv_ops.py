"""The compiled operations of mmcv 2.1.0 that a dense detector uses, in torch.

Names, arguments and results are those of mmcv's extension module, which mmcv's Python functions call: some write into
a tensor they are given instead of returning one. All run on the device of their input. Half precision is computed in
single, since the area of a 256-pixel box already overflows float16. The focal losses are in
:mod:`mgdet_plugin.compat.mmcv_focal_loss`; every operation mmcv knows and this module does not raises when it is
called.

Boxes are ``(x1, y1, x2, y2)`` in pixels. With ``offset=1`` a side is ``x2 - x1 + 1`` (both ends are pixels of the box),
with ``offset=0`` it is ``x2 - x1``. An overlap of two boxes without area is NaN and never passes a threshold.

Shapes: N and M boxes, K boxes of a block.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from mgdet_plugin.compat.mmcv_focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
    widen,
)

__all__ = [
    'bbox_overlaps', 'get_compiler_version', 'get_compiling_cuda_version', 'nms', 'nms_match',
    'sigmoid_focal_loss_backward', 'sigmoid_focal_loss_forward', 'softmax_focal_loss_backward',
    'softmax_focal_loss_forward', 'softnms'
]

IOU, IOF = 0, 1
NAIVE, LINEAR, GAUSSIAN = 0, 1, 2
PAIRS_AT_ONCE = 2**19  # overlaps held in memory at a time by nms


class MissingOpError(NotImplementedError):
    """An operation of mmcv was called that exists only compiled."""


def missing_op(name: str) -> Callable[..., NoReturn]:
    """Stand for an operation that is not here.

    mmcv looks every operation up when it is imported, so the look-up must succeed and the call must not.

    Args:
        name: Name of the operation.

    Returns:
        A function that raises :class:`MissingOpError` whatever it is called with.

    Raises:
        AttributeError: For a dunder name, which the import system and inspection tools ask for.
    """
    if name.startswith('__'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def raise_missing(*_args: object, **_kwargs: object) -> NoReturn:
        raise MissingOpError(f'mmcv operation {name!r} exists only compiled, and mmcv has no compiled ops here: '
                             '`make setup OPS=1` builds mmcv with its ops')

    raise_missing.__name__ = name
    return raise_missing


def get_compiler_version() -> str:
    """Return the compiler of the extension: there is none."""
    return 'not available (mmcv without compiled ops)'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of the extension: there is none."""
    return 'not available'


def _overlap(first: Tensor, second: Tensor, offset: int, mode: int = IOU) -> Tensor:
    """Return the overlap of boxes, broadcast over all but their last dimension.

    Args:
        first: Boxes (..., 4).
        second: Boxes (..., 4).
        offset: 0 or 1, added to every side.
        mode: ``IOU`` divides the intersection by the union, ``IOF`` by the area of ``first``.
    """
    left, top, right, bottom = first.unbind(-1)
    left2, top2, right2, bottom2 = second.unbind(-1)
    width = torch.minimum(right, right2).sub_(torch.maximum(left, left2))
    height = torch.minimum(bottom, bottom2).sub_(torch.maximum(top, top2))
    inter = width.add_(offset).clamp_(min=0).mul_(height.add_(offset).clamp_(min=0))
    area = (right - left + offset) * (bottom - top + offset)
    if mode == IOF:
        return inter.div_(area)
    area2 = (right2 - left2 + offset) * (bottom2 - top2 + offset)
    return inter.div_((area + area2).sub_(inter))


@torch.no_grad()
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of two sets of boxes into ``ious``.

    Args:
        bboxes1: Boxes (N, 4).
        bboxes2: Boxes (M, 4), M = N if ``aligned``.
        ious: Receives the overlaps, (N, M), or (N,) if ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the area of the first box.
        aligned: Compare box i with box i only.
        offset: 0 or 1, added to every side.
    """
    first = widen(bboxes1) if aligned else widen(bboxes1)[:, None]
    ious.copy_(_overlap(first, widen(bboxes2), offset, mode))


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Drop every box that overlaps a kept box of higher score by more than the threshold.

    Sorted boxes are decided a block at a time: within the block, then against all boxes after it, of which the
    suppressed ones leave at once. Memory stays bounded however many boxes there are.

    Args:
        boxes: Boxes (N, 4).
        scores: Scores (N,).
        iou_threshold: Largest overlap that two kept boxes may have.
        offset: 0 or 1, added to every side.

    Returns:
        Indices of the kept boxes by descending score, int64.
    """
    order = scores.sort(0, descending=True).indices  # (N,)
    rest = widen(boxes)[order].T.contiguous().T  # (N, 4), each coordinate contiguous in memory
    kept = [order[:0]]
    while len(order):
        size = min(max(PAIRS_AT_ONCE // len(order), 32), 512)
        block, rest = rest[:size], rest[size:]
        keep = _greedy(_overlap(block[:, None], block, offset) > iou_threshold)  # (K,)
        kept.append(order[:size][keep])
        # gt_ and amax on floats take a third of the time of > and any
        free = _overlap(block[keep][:, None], rest, offset).gt_(iou_threshold).amax(dim=0) == 0
        order, rest = order[size:][free], rest.T[:, free].T
    return torch.cat(kept)


def _greedy(overlaps: Tensor) -> Tensor:
    """Return which boxes greedy suppression keeps, from who overlaps whom.

    "Kept unless a kept box before it overlaps it" is applied to all boxes at once until nothing changes. Each round
    settles at least one more box for good, and usually all are settled after a few.

    Args:
        overlaps: (K, K) bool, boxes by descending score.
    """
    overlaps = overlaps.triu(diagonal=1)
    keep = torch.ones_like(overlaps[0])
    while True:
        settled = ~(overlaps & keep[:, None]).any(dim=0)
        if torch.equal(settled, keep):
            return keep
        keep = settled


@torch.no_grad()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every box with the box that suppresses it.

    Unlike in :func:`nms`, an overlap equal to the threshold suppresses.

    Args:
        dets: Boxes with scores (N, 5).
        iou_threshold: Smallest overlap that suppresses.

    Returns:
        Groups of indices by descending score, the kept box first.
    """
    order = dets[:, 4].sort(0, descending=True).indices
    boxes = widen(dets[order, :4])
    groups = []
    while len(order):
        matched = _overlap(boxes[0], boxes, 0) >= iou_threshold
        matched[0] = True  # also where a box has no area and so no overlap with itself
        groups.append(order[matched].tolist())
        order, boxes = order[~matched], boxes[~matched]
    return groups


@torch.no_grad()
def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    """Lower the scores of boxes that overlap a box of higher score (Bodla et al., arXiv 1704.04503).

    Args:
        boxes: Boxes (N, 4).
        scores: Scores (N,).
        dets: (N, 5), its first rows receive the kept boxes with their lowered scores.
        iou_threshold: Smallest overlap that lowers a score (naive and linear).
        sigma: Width of the gaussian method.
        min_score: A box whose score falls below it is dropped.
        method: 0 naive (to zero), 1 linear (times ``1 - overlap``), 2 gaussian (times ``exp(-overlap^2 / sigma)``).
        offset: 0 or 1, added to every side.

    Returns:
        Indices of the kept boxes by descending lowered score, int64.
    """
    rows = torch.cat([widen(boxes), widen(scores)[:, None]], dim=1)  # (N, 5)
    inds = torch.arange(len(rows), device=rows.device)
    count, step = len(rows), 0
    while step < count:
        best = step + int(rows[step:count, 4].argmax())
        rows[[step, best]], inds[[step, best]] = rows[[best, step]], inds[[best, step]]
        step += 1
        later = slice(step, count)
        overlap = _overlap(rows[step - 1, :4], rows[later, :4], offset)
        rows[later, 4] *= _decay(overlap, iou_threshold, sigma, method)
        alive = ~(rows[later, 4] < min_score)
        if not alive.all():
            survivors = _refill(alive)
            count = step + len(survivors)
            rows[step:count], inds[step:count] = rows[later][survivors], inds[later][survivors]
    dets[:count] = rows[:count].to(dets)
    return inds[:count]


def _decay(overlap: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    """Return the factor on the score of a box for its overlap (M,) with the box just chosen."""
    if method == GAUSSIAN:
        return torch.exp(-overlap * overlap / sigma).nan_to_num(nan=1.0)
    if method not in (NAIVE, LINEAR):
        raise ValueError(f'method must be 0 (naive), 1 (linear) or 2 (gaussian), got {method}')
    lowered = 1 - overlap if method == LINEAR else torch.zeros_like(overlap)
    return torch.where(overlap >= iou_threshold, lowered, 1.0)


def _refill(alive: Tensor) -> Tensor:
    """Return positions of the survivors, each gap filled from the end.

    The compiled code drops a box by moving the last one into its place. Which of two boxes with equal scores is
    chosen next depends on that order, so it is kept.

    Args:
        alive: (M,) bool.
    """
    count = int(alive.sum())
    order = torch.arange(count, device=alive.device)
    order[~alive[:count]] = count + alive[count:].nonzero()[:, 0].flip(0)
    return order
