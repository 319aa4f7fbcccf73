"""Suppression of duplicates as a part of a traced graph, whole batches at once; results are those of ``suppress``.

Shapes: B images, N cells, C classes, K candidates, by falling score.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.overlaps import centre_distance_penalty, overlap
from mgdet_plugin.models.multigrid_head import MultiGridHead, spread_classes

NOTHING = -1.0  # score of what is no detection
_TAKEN = ("'standard', 'diou', and 'cluster' with mode 'plain' or 'weighted' and votes=1")


def check_suppression(settings: Mapping[str, Any]) -> None:
    """Refuse options of suppression that no graph holds.

    Raises:
        UserError: With those that it does.
    """
    options = MultiGridHead.nms_options(dict(settings))
    if options.type in ('soft', 'wbf') or options.votes > 1 or (options.type == 'cluster'
                                                                and options.mode == 'score_penalty'):
        raise UserError(f"--nms takes test_cfg.nms of the type {_TAKEN}, got '{options.type}', mode '{options.mode}' "
                        f'and votes={options.votes}; leave --nms out: the predictor suppresses then')


def suppressed(decoded: tuple[Tensor, Tensor, Tensor],
               settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of decoded cells.

    Args:
        decoded: boxes (B, N, 4) in input pixels, scores (B, N), class probabilities (B, N, C).
        settings: The head's ``test_cfg``, see :func:`check_suppression`.

    Returns:
        boxes (B, K, 4), scores (B, K) and labels (B, K) by falling score; -1 is the score of what is no detection.
    """
    options = MultiGridHead.nms_options(dict(settings))
    boxes, scores, class_probs = decoded
    labels = class_probs.argmax(-1)
    if settings['multi_label']:
        boxes, scores, labels = spread_classes(boxes, scores, class_probs)
    least = float(settings['score_thr'])
    scores, order = torch.where(scores > least, scores, torch.full_like(scores, NOTHING)).sort(1, descending=True)
    count = (scores > least).sum(1).max().clamp(min=1)  # candidates of the image that has most
    if settings['nms_pre'] > 0:
        count = count.clamp(max=settings['nms_pre'])
    scores, order = scores[:, :count], order[:, :count]
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    labels = labels.gather(1, order)
    measure = overlap(boxes[:, :, None], boxes[:, None], options.overlap)  # (B, K, K)
    if options.type == 'diou':
        measure = measure - centre_distance_penalty(boxes[:, :, None], boxes[:, None])
    if not options.class_agnostic:
        measure = torch.where(labels[:, :, None] == labels[:, None], measure, torch.full_like(measure, -1.0))
    ahead = torch.ones_like(measure[0]).cumsum(0) < torch.ones_like(measure[0]).cumsum(1)  # row before column
    real = scores > least
    above = (measure > options.iou_threshold) & ahead & real[:, :, None] & real[:, None]
    keep = settle_batch(above) & real
    if options.type == 'cluster' and options.mode == 'weighted':
        same = (~ahead & ~ahead.T).to(scores)  # the diagonal
        weights = (measure * (above & keep[:, :, None]).to(scores) + same) * scores[:, None]
        boxes = torch.matmul(weights, boxes) / weights.sum(2, keepdim=True).clamp(min=1e-12)
    scores, order = torch.where(keep, scores, torch.full_like(scores, NOTHING)).sort(1, descending=True)
    scores, order = scores[:, :settings['max_per_img']], order[:, :settings['max_per_img']]
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), scores, labels.gather(1, order)


@torch.jit.script
def settle_batch(above: Tensor) -> Tensor:
    """Which boxes greedy suppression keeps, from which better one (row) is above which (column): (B, K, K) bool.

    The fixed point of "kept unless a kept box before it overlaps it", as ``compat.mmcv_ops.settle``; a loop in the
    graph.
    """
    overlapped = above.float()
    keep = torch.ones_like(overlapped[:, :, 0])
    changed = True
    while changed:
        settled = 1.0 - (overlapped * keep.unsqueeze(2)).amax(1)
        changed = bool((settled != keep).any())
        keep = settled
    return keep > 0.5
