"""Suppression of duplicate boxes, as pure functions of tensors.

Greedy suppression over a matrix of pairs is solved by Cluster-NMS's fixed point (Zheng et al., "Enhancing
Geometric Factors in Model Learning and Inference for Object Detection and Instance Segmentation", 2021,
algorithm 1): a few matrix steps with exactly the boxes the one-by-one rule keeps.

Shapes: K boxes sorted by falling score; boxes (K, 4) as (x1, y1, x2, y2) in pixels.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.mmcv_ops import settle
from mgdet_plugin.models.maths.overlaps import centre_distance_penalty, check_overlap_kind, overlap

METHODS = ('standard', 'diou', 'soft', 'cluster', 'wbf')
CLUSTER_MODES = ('plain', 'score_penalty', 'weighted')
SOFT_DECAYS = ('linear', 'gaussian')
CLUSTER_SIGMA = 0.2


class Suppressed(NamedTuple):
    """What is left: indices (M,) into the input, boxes (M, 4) and scores (M,), by falling score."""
    indices: Tensor
    boxes: Tensor
    scores: Tensor


def pair_measure(boxes: Tensor, labels: Tensor | None, kind: str, distance: bool) -> Tensor:
    """(K, K) measure of every pair of boxes (K, 4); pairs of different labels (K,), where given, never meet (-1).

    ``kind`` is 'iou' or 'iol'; ``distance`` subtracts the centres' distance penalty, as DIoU does.
    """
    measure = overlap(boxes[:, None], boxes[None], kind)
    if distance:
        measure = measure - centre_distance_penalty(boxes[:, None], boxes[None])
    if labels is not None:
        measure = measure.masked_fill(labels[:, None] != labels[None], -1.0)
    return measure


def greedy_keep(measure: Tensor, threshold: float) -> Tensor:
    """Boxes (K,) bool that greedy suppression keeps: not above the threshold with a kept box of higher score.

    Args:
        measure: (K, K) measure of every pair, boxes by falling score.
        threshold: A pair above it is a duplicate.
    """
    return settle(measure > threshold)


def cluster_nms(boxes: Tensor, scores: Tensor, measure: Tensor, threshold: float, mode: str = 'plain',
                votes: int = 1) -> Suppressed:
    """Cluster-NMS and its two variants (source as above, sections IV-A to IV-C).

    Args:
        boxes: (K, 4), by falling score.
        scores: (K,).
        measure: (K, K) measure of every pair.
        threshold: A pair above it is a duplicate.
        mode: 'plain' keeps what greedy suppression keeps; 'score_penalty' keeps all and multiplies each score
            by ``exp(-measure^2 / 0.2)`` over the better boxes that survive; 'weighted' replaces each kept box by
            the mean of itself and its duplicates, weighted by score times measure.
        votes: Of 'weighted': the score of a kept box is the mean of the best ``votes`` scores among itself and its
            duplicates, 0 for each that is missing. Cells that found the same object confirm each other; the best of
            several is too high a guess where they do not. 1 keeps the best.
    """
    keep = greedy_keep(measure, threshold)
    better = (measure.clamp(min=0) * keep[:, None]).triu(1)  # row i survives and has the higher score
    if mode == 'score_penalty':
        scores = scores * (-better.square() / CLUSTER_SIGMA).exp().prod(0)
        keep = torch.ones_like(keep)
    elif mode == 'weighted':
        # row: the box that is replaced; columns: itself and its duplicates
        share = better * (better > threshold) + torch.eye(len(boxes), device=boxes.device, dtype=boxes.dtype)
        weights = share * scores[None]
        boxes = weights @ boxes / weights.sum(1, keepdim=True).clamp(min=1e-12)
        if votes > 1:
            best = ((share > 0) * scores[None]).topk(min(votes, len(boxes)), dim=1).values
            scores = best.sum(1) / votes
    index = keep.nonzero().squeeze(1)
    index = index[scores[index].argsort(descending=True, stable=True)]
    return Suppressed(index, boxes[index], scores[index])


def soft_nms(boxes: Tensor, scores: Tensor, measure: Tensor, threshold: float, score_thr: float, decay: str = 'linear',
             sigma: float = 0.5) -> Suppressed:
    """Soft-NMS (Bodla et al., ICCV 2017): the best box left is taken, the rest decay by their overlap with it.

    Args:
        boxes: (K, 4).
        scores: (K,).
        measure: (K, K) measure of every pair.
        threshold: Linear decay, ``score * (1 - measure)``, applies from this measure on.
        score_thr: Boxes whose score falls to this or below are dropped; the rest have the decayed scores.
        decay: 'linear' or 'gaussian' (``score * exp(-measure^2 / sigma)`` for every pair).
        sigma: Of the Gaussian.
    """
    measure = measure.clamp(min=0)
    factors = (-measure.square() / sigma).exp() if decay == 'gaussian' else torch.where(
        measure >= threshold, 1 - measure, torch.ones_like(measure))
    left, taken, final = scores.clone(), [], []
    for _ in range(len(boxes)):
        best = left.argmax()
        if left[best] <= score_thr:
            break
        taken.append(best)
        final.append(left[best].clone())
        left = left * factors[best]
        left[torch.stack(taken)] = -1.0
    index = torch.stack(taken) if taken else left.new_zeros(0, dtype=torch.long)
    return Suppressed(index, boxes[index], torch.stack(final) if final else left[:0])


def weighted_boxes_fusion(boxes: Tensor, scores: Tensor, labels: Tensor | None, threshold: float, kind: str = 'iou',
                          models: int = 1) -> Suppressed:
    """Weighted boxes fusion (Solovyev et al., "Weighted boxes fusion", 2021, arXiv 1910.13302, section 3).

    Boxes are taken by falling score. Each joins the fused box that it overlaps most, if by more than the threshold, or
    begins one of its own; a fused box is the mean of its boxes weighted by their scores, which the next one is held
    against. So a chain of boxes moves the mean along, unlike in ``cluster_nms``, where the best box stays the measure.

    Args:
        boxes: (K, 4), by falling score.
        scores: (K,).
        labels: (K,) boxes of other labels are never fused; None: all may be.
        threshold: The paper's 0.55.
        kind: Of the overlap, 'iou' or 'iol'.
        models: N of the paper, what could have found an object: a fused score is the mean of its T boxes' times
            ``min(T, N) / N`` (equation 5). 1 leaves the mean.

    Returns:
        By falling score; the index is that of the best box of each.
    """
    fused, sums = torch.zeros_like(boxes), torch.zeros_like(boxes)
    weight, count = torch.zeros_like(scores), torch.zeros_like(scores)
    first = torch.zeros_like(scores, dtype=torch.long)  # the best box of each fused one
    found = 0
    for place in range(len(boxes)):
        measure = overlap(fused[:found], boxes[place], kind)
        if labels is not None:
            measure = measure.masked_fill(labels[first[:found]] != labels[place], -1.0)
        best = int(measure.argmax()) if found else 0
        if not found or measure[best] <= threshold:
            best, found = found, found + 1
            first[best] = place
        weight[best] += scores[place]
        count[best] += 1
        sums[best] += scores[place] * boxes[place]
        fused[best] = sums[best] / weight[best].clamp(min=1e-12)
    final = weight[:found] / count[:found] * count[:found].clamp(max=models) / models
    order = final.argsort(descending=True, stable=True)
    return Suppressed(first[:found][order], fused[:found][order], final[order])


class NMSOptions(NamedTuple):
    """Options of :func:`suppress`, the ``nms`` entry of a head's ``test_cfg``.

    Attributes:
        type: 'diou', 'standard', 'soft', 'cluster' or 'wbf' (weighted boxes fusion).
        iou_threshold: A pair above it is a duplicate.
        overlap: 'iou' or 'iol'.
        class_agnostic: Boxes of different classes suppress each other.
        decay: Of 'soft': 'linear' or 'gaussian'.
        sigma: Of the Gaussian decay.
        mode: Of 'cluster': 'plain', 'score_penalty' or 'weighted'.
        votes: Of 'weighted': an object's score is the mean of this many of its best cells, 0 for each that is missing
            (in a corner of the image there are only four). So scores fall, and ``score_thr`` is held against them. Of
            'wbf': the paper's number of models, with a cell in place of a model.
    """
    type: str = 'diou'
    iou_threshold: float = 0.45
    overlap: str = 'iou'
    class_agnostic: bool = True
    decay: str = 'linear'
    sigma: float = 0.5
    mode: str = 'plain'
    votes: int = 1

    def checked(self) -> NMSOptions:
        """The options themselves.

        Raises:
            UserError: If one is out of its range.
        """
        for value, allowed, name in ((self.type, METHODS, 'type'), (self.decay, SOFT_DECAYS, 'decay'),
                                     (self.mode, CLUSTER_MODES, 'mode')):
            if value not in allowed:
                raise UserError(f"test_cfg.nms.{name} must be one of {allowed}, got '{value}'")
        if not 0 <= self.iou_threshold <= 1 or self.sigma <= 0:
            raise UserError('test_cfg.nms needs 0 <= iou_threshold <= 1 and sigma > 0, got '
                            f'{self.iou_threshold} and {self.sigma}')
        if isinstance(self.votes, bool) or not isinstance(self.votes, int) or self.votes < 1:
            raise UserError(f'test_cfg.nms.votes must be a whole number from 1, got {self.votes!r}')
        merges = self.type == 'wbf' or (self.type, self.mode) == ('cluster', 'weighted')
        if self.votes > 1 and (self.class_agnostic or not merges):
            raise UserError(f"test_cfg.nms.votes={self.votes} needs type='cluster' with mode='weighted', or 'wbf', "
                            f"and class_agnostic=False, got '{self.type}', '{self.mode}' and {self.class_agnostic}; "
                            'votes=1 leaves the scores as they are')
        check_overlap_kind(self.overlap)
        return self


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, options: NMSOptions, score_thr: float = 0.0) -> Suppressed:
    """Suppress the duplicates of one image: boxes (K, 4), scores (K,) and labels (K,) in any order.

    Boxes that a method decays to ``score_thr`` or below are dropped. The indices of what is left point into the input.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, scores = boxes[order], scores[order]
    per_class = None if options.class_agnostic else labels[order]
    measure = pair_measure(boxes, per_class, options.overlap, options.type == 'diou')
    if options.type == 'wbf':
        left = weighted_boxes_fusion(boxes, scores, per_class, options.iou_threshold, options.overlap, options.votes)
    elif options.type == 'soft':
        left = soft_nms(boxes, scores, measure, options.iou_threshold, score_thr, options.decay, options.sigma)
    else:
        mode = options.mode if options.type == 'cluster' else 'plain'
        left = cluster_nms(boxes, scores, measure, options.iou_threshold, mode, options.votes)
    above = left.scores > score_thr
    return Suppressed(order[left.indices[above]], left.boxes[above], left.scores[above])
