"""Overlap measures between boxes, as pure functions of tensors.

Boxes are (..., 4) as (x1, y1, x2, y2) in pixels. All functions broadcast over the leading dimensions, so
``overlap(a[:, None], b[None])`` with a (M, 4) and b (N, 4) is the (M, N) matrix of every pair.
"""
from __future__ import annotations

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError

OVERLAP_KINDS = ('iou', 'iol')
_TINY = 1e-12


def check_overlap_kind(kind: str) -> str:
    """Return ``kind`` if it names an overlap measure.

    Raises:
        UserError: If it does not.
    """
    if kind not in OVERLAP_KINDS:
        raise UserError(f"overlap must be one of {OVERLAP_KINDS}, got '{kind}'")
    return kind


def box_area(boxes: Tensor) -> Tensor:
    """Area in square pixels of boxes (..., 4); a box of negative width or height has none."""
    return _area(*_corners(boxes))


def overlap(boxes1: Tensor, boxes2: Tensor, kind: str = 'iou') -> Tensor:
    """Overlap of boxes that broadcast against each other.

    Args:
        boxes1: (..., 4) boxes in pixels.
        boxes2: (..., 4) boxes in pixels.
        kind: 'iou', intersection over union, or 'iol', intersection over the larger of the two areas
            (MultiGridDet's own measure, never below IoU: a box inside another scores their ratio of areas).

    Returns:
        (...) values in [0, 1]; 0 where both boxes are empty.
    """
    check_overlap_kind(kind)
    left, top, right, bottom = _corners(boxes1)
    left2, top2, right2, bottom2 = _corners(boxes2)
    inter = torch.minimum(right, right2).sub_(torch.maximum(left, left2)).clamp_(min=0)
    inter.mul_(torch.minimum(bottom, bottom2).sub_(torch.maximum(top, top2)).clamp_(min=0))
    area, area2 = _area(left, top, right, bottom), _area(left2, top2, right2, bottom2)
    whole = (area + area2).sub_(inter) if kind == 'iou' else torch.maximum(area, area2)
    return inter.div_(whole.clamp_(min=_TINY))


def centre_distance_penalty(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box, (...) in [0, 1).

    The second term of DIoU (Zheng et al., "Distance-IoU Loss", AAAI 2020, eq. 7).
    """
    left, top, right, bottom = _corners(boxes1)
    left2, top2, right2, bottom2 = _corners(boxes2)
    distance = ((left + right) / 2 - (left2 + right2) / 2).square_()
    distance.add_(((top + bottom) / 2 - (top2 + bottom2) / 2).square_())
    diagonal = torch.maximum(right, right2).sub_(torch.minimum(left, left2)).square_()
    diagonal.add_(torch.maximum(bottom, bottom2).sub_(torch.minimum(top, top2)).square_())
    return distance.div_(diagonal.clamp_(min=_TINY))


def _corners(boxes: Tensor) -> tuple[Tensor, ...]:
    """Left, top, right and bottom of boxes (..., 4), each contiguous: pairs of strided ones take many times as long."""
    return boxes.movedim(boxes.ndim - 1, 0).contiguous().unbind()  # -1 is left as it is in a graph of ONNX


def _area(left: Tensor, top: Tensor, right: Tensor, bottom: Tensor) -> Tensor:
    return (right - left).clamp_(min=0).mul_((bottom - top).clamp_(min=0))


def centred_overlap(sizes1: Tensor, sizes2: Tensor, kind: str = 'iol') -> Tensor:
    """Overlap (...) in [0, 1] of boxes on the same centre, of which only widths and heights (..., 2) are known."""
    check_overlap_kind(kind)
    width, height = sizes1.clamp(min=0).unbind(-1)
    width2, height2 = sizes2.clamp(min=0).unbind(-1)
    inter = torch.minimum(width, width2).mul_(torch.minimum(height, height2))
    area, area2 = width * height, width2 * height2
    whole = (area + area2).sub_(inter) if kind == 'iou' else torch.maximum(area, area2)
    return inter.div_(whole.clamp_(min=_TINY))
