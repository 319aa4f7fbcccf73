"""The compiled operations of mmcv 2.1.0 that mmdet's one-stage detectors use, in torch.

Names, arguments and results are those of mmcv's extension module, which mmcv's Python functions call. All run on the
device of their input; the compiled focal loss exists on CUDA alone (mmdet computes the loss in Python on the CPU).
Half precision is computed in single, since the area of a 256-pixel box already overflows float16. Every operation
mmcv knows and this module does not raises when it is called.

Boxes are ``(x1, y1, x2, y2)`` in pixels. With ``offset=1`` a side is ``x2 - x1 + 1`` (both ends are pixels of the box),
with ``offset=0`` it is ``x2 - x1``. An overlap of two boxes without area is NaN and never passes a threshold.

Shapes: N boxes or samples, K boxes of a block, C classes.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

__all__ = [
    'get_compiler_version', 'get_compiling_cuda_version', 'nms', 'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward'
]

PAIRS_AT_ONCE = 2**17  # measures held in memory at a time
BLOCK = 256  # boxes decided at a time
PairMeasure = Callable[[Tensor, Tensor], Tensor]
_TINY = torch.finfo(torch.float32).tiny  # the kernels' floor under a logarithm, for every dtype


class MissingOpError(NotImplementedError):
    """An operation of mmcv was called that exists only compiled."""


def missing_op(name: str) -> Callable[..., NoReturn]:
    """A function that stands for an operation that is not here, and raises :class:`MissingOpError` when it is called.

    mmcv looks every operation up when it is imported, so the look-up must succeed and the call must not.

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


def _widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _overlap(first: Tensor, second: Tensor, offset: int) -> Tensor:
    """Return the IoU of boxes, corners (4, ...) that broadcast over all but their first dimension."""
    left, top, right, bottom = first
    left2, top2, right2, bottom2 = second
    width = torch.minimum(right, right2).sub_(torch.maximum(left, left2))
    height = torch.minimum(bottom, bottom2).sub_(torch.maximum(top, top2))
    inter = width.add_(offset).clamp_(min=0).mul_(height.add_(offset).clamp_(min=0))
    area = (right - left + offset) * (bottom - top + offset)
    area2 = (right2 - left2 + offset) * (bottom2 - top2 + offset)
    return inter.div_((area + area2).sub_(inter))


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Drop every box that overlaps a kept box of higher score by more than the threshold.

    Args:
        boxes: Boxes (N, 4).
        scores: Scores (N,).
        iou_threshold: Largest overlap that two kept boxes may have.
        offset: 0 or 1, added to every side.

    Returns:
        Indices of the kept boxes by descending score, int64.
    """
    order = scores.sort(0, descending=True).indices  # (N,)
    corners = _widen(boxes)[order].T.contiguous()  # (4, N): each coordinate contiguous in memory

    def overlap(first: Tensor, second: Tensor) -> Tensor:
        return _overlap(corners[:, first, None], corners[:, None, second], offset)

    return order[greedy(overlap, torch.arange(len(order), device=order.device), iou_threshold)]


def greedy(measure: PairMeasure, rest: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Boxes that greedy suppression keeps: each not above the threshold with a kept box of higher score.

    Boxes are decided a block at a time: within the block, then against all boxes after it, of which the suppressed ones
    leave at once. Memory stays bounded however many boxes there are.

    Args:
        measure: Gives the (K, N) measure of every pair, as a tensor of its own, from the boxes' numbers (K,) and (N,).
        rest: Numbers of the boxes, by descending score.
        threshold: A pair above it is a duplicate; one whose measure is NaN is none.
        limit: As many boxes as are wanted; None: all.

    Returns:
        Numbers of the kept boxes (M,), in their order.
    """
    kept, wanted = [rest[:0]], len(rest) if limit is None else limit
    while len(rest) and wanted > 0:
        size = min(max(PAIRS_AT_ONCE // len(rest), 32), BLOCK)
        block, rest = rest[:size], rest[size:]
        # here and in settle floats stand for truths: comparing into bool tensors and any take several times as long
        block = block[settle(measure(block, block).gt_(threshold))]
        kept.append(block[:wanted])
        wanted -= len(block)
        if len(rest) and wanted > 0:
            rest = rest[measure(block, rest).gt_(threshold).amax(0) == 0]
    return torch.cat(kept)


def settle(overlaps: Tensor) -> Tensor:
    """Which boxes (K,) bool greedy suppression keeps, from who overlaps whom: (K, K) of 0 and 1, by descending score.

    "Kept unless a kept box before it overlaps it" is applied to all boxes at once until nothing changes. Each round
    settles at least one more box for good, and usually all are settled after a few (Cluster-NMS: Zheng et al.,
    "Enhancing Geometric Factors in Model Learning and Inference for Object Detection and Instance Segmentation", 2021,
    algorithm 1). ``overlaps`` is overwritten.
    """
    overlaps.triu_(1)
    keep = overlaps.new_ones(len(overlaps))
    while True:
        settled = (keep @ overlaps == 0).to(keep)
        if torch.equal(settled, keep):
            return keep.bool()
        keep = settled


@torch.no_grad()
def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of every sample and class into ``output`` (Lin et al., arXiv 1708.02002, equation 5).

    Logits (N, C), the class of each sample (N,), C for background, and class weights (C,) or none of them; ``alpha`` is
    the weight of the positive class, ``1 - alpha`` that of the others.
    """
    prob = _widen(input).sigmoid()
    positive = -alpha * (1 - prob)**gamma * prob.clamp(min=_TINY).log()
    negative = -(1 - alpha) * prob**gamma * (1 - prob).clamp(min=_TINY).log()
    loss = torch.where(_positives(input, target), positive, negative)
    output.copy_((loss.T * _class_factor(weight, target)).T)


@torch.no_grad()
def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` by the logits into ``grad_input`` (N, C)."""
    prob = _widen(input).sigmoid()
    log_prob, log_rest = prob.clamp(min=_TINY).log(), (1 - prob).clamp(min=_TINY).log()
    positive = -alpha * (1 - prob)**gamma * (1 - prob - gamma * prob * log_prob)
    negative = -(1 - alpha) * prob**gamma * (gamma * (1 - prob) * log_rest - prob)
    grad = torch.where(_positives(input, target), positive, negative)
    grad_input.copy_((grad.T * _class_factor(weight, target)).T)


def _class_factor(weight: Tensor, target: Tensor) -> Tensor | float:
    """The weight of each sample's class (N,), or 1 without class weights; IndexError where a target has none."""
    return _widen(weight).index_select(0, target) if weight.numel() else 1.0


def _positives(logits: Tensor, target: Tensor) -> Tensor:
    """Return where a class is its sample's target, (N, C) bool; ValueError if one is above C, the background."""
    classes = logits.size(1)
    if target.numel() and int(target.max()) > classes:
        raise ValueError(f'target must be at most the number of classes, {classes}, got {int(target.max())}')
    return target[:, None] == torch.arange(classes, device=target.device)
