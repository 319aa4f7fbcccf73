"""The loss that holds a model to what a teacher thinks: pure functions of tensors.

Shapes: B images, N cells over all levels, A anchors, C classes, D = 5 + A + C.

Every term is a divergence, 0 where the model thinks as the teacher does. The teacher's own certainty weighs it: where
it sees an object, with probability q, the model must agree on class, anchor and box; elsewhere on there being none.
The scales are those of the model's own loss, so that an old image counts like a labelled one.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mgdet_plugin.models.multigrid_bbox_coder import activate_xy, split_fields


@dataclass(frozen=True)
class Scales:
    """What the terms are multiplied by, and how probabilities are read.

    Attributes:
        coord: Of the box term.
        object: Of cells in which the teacher is sure of an object, in the objectness term.
        no_object: Of cells in which it is sure of none.
        cls: Of the class term.
        anchor: Of the anchor term.
        xy_scale: The s of the coder's ``tanh(s t) + sigmoid(s t)``.
        use_softmax: Whether anchors and classes exclude one another.
        temperature: T that class and anchor logits are divided by.
    """
    coord: float = 5.0
    object: float = 1.0
    no_object: float = 0.5
    cls: float = 1.0
    anchor: float = 1.0
    xy_scale: float = 0.15
    use_softmax: bool = True
    temperature: float = 1.0


def cell_terms(model: Tensor, teacher: Tensor, num_anchors: int, scales: Scales,
               counts: Tensor | None = None) -> dict[str, Tensor]:
    """Loss terms of raw cells, summed over cells and divided by the number of images.

    Args:
        model: (B, N, D) of the model that is trained.
        teacher: (B, N, D) of the teacher for the same images.
        num_anchors: A.
        scales: Of the terms.
        counts: (B, N) factor on each cell. Default: 1.

    Returns:
        ``loss_keep_box``, ``loss_keep_obj``, ``loss_keep_anchor`` and ``loss_keep_cls``.
    """
    ours, theirs = split_fields(model, num_anchors), split_fields(teacher, num_anchors)
    sure = theirs.objectness.sigmoid()  # q, (B, N)
    objectness = divergence(ours.objectness, theirs.objectness) * (
        scales.no_object + (scales.object - scales.no_object) * sure)
    moved = [(activate_xy(ours.xy, scales.xy_scale) - activate_xy(theirs.xy, scales.xy_scale)).square().sum(-1),
             (ours.wh - theirs.wh).square().sum(-1)]
    between = softmax_divergence if scales.use_softmax else sigmoid_divergence
    terms = dict(loss_keep_box=scales.coord * sure * sum(moved),
                 loss_keep_obj=objectness,
                 loss_keep_anchor=scales.anchor * sure * between(ours.anchor, theirs.anchor, scales.temperature),
                 loss_keep_cls=scales.cls * sure * between(ours.cls, theirs.cls, scales.temperature))
    images = max(1, len(model))
    return {name: (term if counts is None else term * counts).sum() / images for name, term in terms.items()}


def divergence(model: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of logits (...) of single events; its gradient is that of the cross-entropy."""
    chance = teacher.sigmoid()
    own = F.binary_cross_entropy_with_logits(teacher, chance, reduction='none')
    return F.binary_cross_entropy_with_logits(model, chance, reduction='none') - own


def softmax_divergence(model: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence (...) of logits (..., K) of K events that exclude one another, times T^2 (arXiv 1503.02531).

    An event whose probability is 0 for the teacher only has to be 0 for the model.
    """
    goal = (teacher / temperature).log_softmax(-1)
    found = (model / temperature).log_softmax(-1)
    return F.kl_div(found, goal, reduction='none', log_target=True).sum(-1) * temperature**2


def sigmoid_divergence(model: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence (...) of logits (..., K) of K independent events, summed, times T^2."""
    return divergence(model / temperature, teacher / temperature).sum(-1) * temperature**2


def feature_term(model: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Squared distance of maps (B, C, H, W), each over the teacher's mean square: 1 where the model sees nothing of it.

    Mean over levels.
    """
    ratios = [(ours.float() - theirs.float()).square().mean() / theirs.float().square().mean().clamp(min=1e-12)
              for ours, theirs in zip(model, teacher)]
    return torch.stack(ratios).mean()
