"""The terms of the MultiGrid loss before any scale or normaliser, as pure functions of tensors.

Shapes: B images, N cells over all levels, C classes, G objects of an image (padded), P positive cells. Every
term returns one value a cell; the caller weighs, normalises and sums.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mgdet_plugin.models.maths.overlaps import overlap

FOCAL_GAMMA = 2.0
FOCAL_ALPHA = 0.25
PAIRS_AT_ONCE = 1 << 18  # of boxes and objects: what is computed of more does not stay in a core's cache
FIT_FLOOR = 1e-3  # so that an object none of whose cells fits yet weighs as much as any


def best_overlap(boxes: Tensor, objects: Tensor, kind: str) -> Tensor:
    """Highest overlap of each box with any object of its image; carries no gradient.

    Boxes (B, N, 4) and objects (B, G, 4), padded with empty boxes, in pixels; 'iou' or 'iol' -> (B, N) in [0, 1], 0 in
    images without objects.
    """
    if objects.shape[1] == 0:
        return boxes.new_zeros(boxes.shape[:2])
    at_once = max(1, PAIRS_AT_ONCE // max(1, objects.shape[:2].numel())) if boxes.is_cpu else boxes.shape[1] or 1
    with torch.no_grad():
        return torch.cat([overlap(part[:, :, None], objects[:, None], kind).amax(2)
                          for part in boxes.split(at_once, 1)], 1)


def smooth_one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(P,) classes -> (P, C) targets ``onehot * (1 - e) + e / C``, which still sum to one."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def softmax_term(logits: Tensor, labels: Tensor, smoothing: float = 0.0, focal: bool = False,
                 class_weights: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy.

    Args:
        logits: (P, C).
        labels: (P,) true classes.
        smoothing: Label smoothing in [0, 1).
        focal: Multiply by ``(1 - p_t)^2``, p_t the probability of the true class (no alpha).
        class_weights: (C,) factors by true class.

    Returns:
        (P,) losses.
    """
    log_probs = logits.log_softmax(-1)
    term = -(smooth_one_hot(labels, logits.shape[-1], smoothing) * log_probs).sum(-1)
    if focal:
        term = term * (1 - log_probs.gather(1, labels[:, None]).squeeze(1).exp()).pow(FOCAL_GAMMA)
    return term if class_weights is None else term * class_weights[labels]


def sigmoid_term(logits: Tensor, labels: Tensor, smoothing: float = 0.0, focal: bool = False,
                 class_weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of every column, summed over columns (for weights trained so).

    Arguments are those of :func:`softmax_term`, but ``class_weights`` are factors by column, and ``focal`` is the focal
    loss with alpha 0.25 and gamma 2 (Lin et al., "Focal Loss", ICCV 2017, eq. 5).
    """
    hard = F.one_hot(labels, logits.shape[-1]).float()
    term = F.binary_cross_entropy_with_logits(
        logits, smooth_one_hot(labels, logits.shape[-1], smoothing), reduction='none')
    if focal:
        probability = logits.sigmoid()
        miss = hard * (1 - probability) + (1 - hard) * probability
        term = term * miss.pow(FOCAL_GAMMA) * (hard * FOCAL_ALPHA + (1 - hard) * (1 - FOCAL_ALPHA))
    return (term if class_weights is None else term * class_weights).sum(-1)


def cell_weights(fit: Tensor, owner: Tensor, power: float) -> Tensor:
    """Weight in (0, 1] of each cell by how well its box fits, 1 for the best cell of an object.

    Args:
        fit: (P,) overlap of each cell's box with its object, without gradient.
        owner: (P,) object each cell predicts.
        power: Of the ratio to the best; 0 gives 1 everywhere.
    """
    owners, place = owner.unique(return_inverse=True)
    best = fit.new_zeros(len(owners)).scatter_reduce(0, place, fit, 'amax')
    return ((fit + FIT_FLOOR) / (best[place] + FIT_FLOOR)).pow(power)


def consensus_term(centres: Tensor, log_sizes: Tensor, owner: Tensor, num_objects: int) -> Tensor:
    """How far the cells of one object are from agreeing on its box.

    Args:
        centres: (P, 2) predicted centres in cells of the level.
        log_sizes: (P, 2) log of the predicted sizes in pixels.
        owner: (P,) object, of ``num_objects``, that each cell predicts.

    Returns:
        (P,) squared distance of each cell's (x, y, log w, log h) from the mean of its object's, over its cells' number.
    """
    boxes = torch.cat((centres, log_sizes), 1)
    cells = boxes.new_zeros(num_objects).index_add(0, owner, torch.ones_like(boxes[:, 0])).clamp(min=1)
    mean = boxes.new_zeros(num_objects, 4).index_add(0, owner, boxes) / cells[:, None]
    return (boxes - mean[owner]).square().sum(1) / cells[owner]
