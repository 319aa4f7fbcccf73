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
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


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
    # Width and height one after the other: a (..., 2) temporary would double the memory of large pairings.
    inter = (torch.minimum(boxes1[..., 2], boxes2[..., 2]) - torch.maximum(boxes1[..., 0], boxes2[..., 0])).clamp(min=0)
    inter = inter * (torch.minimum(boxes1[..., 3], boxes2[..., 3]) -
                     torch.maximum(boxes1[..., 1], boxes2[..., 1])).clamp(min=0)
    area1, area2 = box_area(boxes1), box_area(boxes2)
    whole = area1 + area2 - inter if kind == 'iou' else torch.maximum(area1, area2)
    return inter / whole.clamp(min=_TINY)


def centre_distance_penalty(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box, (...) in [0, 1).

    The second term of DIoU (Zheng et al., "Distance-IoU Loss", AAAI 2020, eq. 7).
    """
    centres = (boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]) / 2
    enclosing = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(boxes1[..., :2], boxes2[..., :2])
    return centres.square().sum(-1) / enclosing.square().sum(-1).clamp(min=_TINY)


def centred_overlap(sizes1: Tensor, sizes2: Tensor, kind: str = 'iol') -> Tensor:
    """Overlap (...) in [0, 1] of boxes on the same centre, of which only widths and heights (..., 2) are known."""
    return overlap(torch.cat((-sizes1 / 2, sizes1 / 2), -1), torch.cat((-sizes2 / 2, sizes2 / 2), -1), kind)
