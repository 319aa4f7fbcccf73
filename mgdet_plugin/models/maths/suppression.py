"""Suppression of duplicate boxes, as pure functions of tensors.

One measure of pairs (:class:`BoxPairs`) and one greedy rule over it (:func:`mgdet_plugin.compat.mmcv_ops.greedy`) serve
every method. Pairs are measured a block at a time, so that memory stays bounded however many boxes there are.

Shapes: K boxes sorted by falling score, M of them kept; boxes (K, 4) as (x1, y1, x2, y2) in pixels.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.mmcv_ops import PAIRS_AT_ONCE, greedy
from mgdet_plugin.models.maths.overlaps import centre_distance_penalty, check_overlap_kind, overlap

METHODS = ('standard', 'diou', 'soft', 'cluster', 'wbf')
CLUSTER_MODES = ('plain', 'score_penalty', 'weighted')
SOFT_DECAYS = ('linear', 'gaussian')
CLUSTER_SIGMA = 0.2
FUSED_AT_ONCE = 128  # boxes that join fused boxes at a time
SOFT_AT_ONCE = 2048  # boxes up to which soft suppression measures all pairs beforehand, in place of a row a box taken
LABELLED_AT_ONCE = 256  # boxes of several labels that are decided together


class Suppressed(NamedTuple):
    """What is left: indices (M,) into the input, boxes (M, 4) and scores (M,), by falling score."""
    indices: Tensor
    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class BoxPairs:
    """The measure of pairs among boxes, called with the numbers of both sides: (R,) and (S,) -> (R, S).

    Attributes:
        boxes: (K, 4).
        labels: (K,) boxes of different labels never meet (0); None: all may.
        kind: Of the overlap, 'iou' or 'iol'.
        distance: Subtract the centres' distance penalty, as DIoU does.
    """
    boxes: Tensor
    labels: Tensor | None = None
    kind: str = 'iou'
    distance: bool = False

    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        first, second = self.boxes[rows, None], self.boxes[None, columns]
        measure = overlap(first, second, self.kind)
        if self.distance:
            measure.sub_(centre_distance_penalty(first, second))
        if self.labels is not None:
            labels = self.labels.float()  # a float comparison in place is quick, one into bool is not
            measure.mul_((labels[rows, None] - labels[columns]).eq_(0))
        return measure


def cluster_nms(pairs: BoxPairs, scores: Tensor, threshold: float, mode: str = 'plain', votes: int = 1,
                limit: int | None = None) -> Suppressed:
    """Greedy suppression and two variants, those of Cluster-NMS (Zheng et al., 2021, sections IV-A to IV-C).

    Args:
        pairs: The boxes' pairs, by falling score.
        scores: (K,).
        threshold: A pair above it is a duplicate.
        mode: 'plain' keeps what greedy suppression keeps; 'score_penalty' keeps all and multiplies each score
            by ``exp(-measure^2 / 0.2)`` over the better boxes that survive; 'weighted' replaces each kept box by
            the mean of itself and its duplicates, weighted by score times measure.
        votes: Of 'weighted': the score of a kept box is the mean of the best ``votes`` scores among itself and its
            duplicates, 0 for each that is missing. Cells that found the same object confirm each other; the best of
            several is too high a guess where they do not. 1 keeps the best.
        limit: Of 'plain': boxes that are wanted, the best; None: all.
    """
    everything = torch.arange(len(scores), device=scores.device)
    index = _kept(pairs, everything, threshold, limit if mode == 'plain' else None)
    if mode == 'plain':
        return Suppressed(index, pairs.boxes[index], scores[index])
    blocks = index.split(max(PAIRS_AT_ONCE // max(len(scores), 1), 1))
    if mode == 'score_penalty':
        for rows in blocks:
            scores = scores * _penalty(pairs, rows, everything)
        index, boxes = everything, pairs.boxes
    else:
        merged = [_merged(pairs, scores, rows, everything, threshold, votes) for rows in blocks]
        boxes, scores = (torch.cat(each) for each in zip(*merged))
    order = scores.argsort(descending=True, stable=True)
    return Suppressed(index[order], boxes[order], scores[order])


def _kept(pairs: BoxPairs, everything: Tensor, threshold: float, limit: int | None) -> Tensor:
    """Numbers of the boxes that greedy suppression keeps, by falling score; arguments as in :func:`.greedy`.

    Boxes of different labels never meet, so each label is settled for itself; as many whole labels as are no more than
    ``LABELLED_AT_ONCE`` boxes are settled together, since for a few boxes the calls cost more than the pairs.
    """
    if pairs.labels is None or len(everything) <= LABELLED_AT_ONCE:
        return greedy(pairs, everything, threshold, limit)
    labels, order = pairs.labels.sort(stable=True)
    kept, start = [], 0
    for size, mixed in _runs(labels.unique_consecutive(return_counts=True)[1].tolist()):
        run = order[start:start + size]  # of several labels it is not by falling score: all that is kept is wanted
        kept.append(greedy(pairs, run, threshold) if mixed
                    else greedy(replace(pairs, labels=None), run, threshold, limit))
        start += size
    return torch.cat(kept).sort().values[:limit]


def _runs(counts: list[int]) -> list[tuple[int, bool]]:
    """Sizes of runs of labels that are settled together, from the boxes of each label, and whether they are several."""
    runs: list[tuple[int, bool]] = []
    for count in counts:
        if runs and runs[-1][0] + count <= LABELLED_AT_ONCE:
            runs[-1] = (runs[-1][0] + count, True)
        else:
            runs.append((count, False))
    return runs


def _better(pairs: BoxPairs, rows: Tensor, columns: Tensor) -> Tensor:
    """Measure (R, S) of boxes with those of lower score, 0 with the others."""
    return pairs(rows, columns).clamp_(min=0).mul_((columns.float() - rows[:, None]).gt_(0))


def _penalty(pairs: BoxPairs, rows: Tensor, columns: Tensor) -> Tensor:
    """Factors (S,) on the scores for their overlap with better boxes (R,)."""
    return _better(pairs, rows, columns).square_().div_(-CLUSTER_SIGMA).exp_().prod(0)


def _merged(pairs: BoxPairs, scores: Tensor, rows: Tensor, columns: Tensor, threshold: float,
            votes: int) -> tuple[Tensor, Tensor]:
    """Boxes (R, 4) and scores (R,) of kept boxes and their duplicates."""
    share = _better(pairs, rows, columns)
    share.mul_(share.gt(threshold))
    share.scatter_(1, rows[:, None], 1.0)
    weights = share * scores
    boxes = weights @ pairs.boxes / weights.sum(1, keepdim=True).clamp(min=1e-12)
    if votes == 1:
        return boxes, scores[rows]
    best = share.gt_(0).mul_(scores).topk(min(votes, len(scores)), dim=1).values
    return boxes, best.sum(1) / votes


def soft_nms(pairs: BoxPairs, scores: Tensor, threshold: float, score_thr: float, decay: str = 'linear',
             sigma: float = 0.5, limit: int | None = None) -> Suppressed:
    """Soft-NMS (Bodla et al., ICCV 2017): the best box left is taken, the rest decay by their overlap with it.

    Args:
        pairs: The boxes' pairs, in any order.
        scores: (K,).
        threshold: Linear decay, ``score * (1 - measure)``, applies from this measure on.
        score_thr: Boxes whose score falls to this or below are dropped; the rest have the decayed scores.
        decay: 'linear' or 'gaussian' (``score * exp(-measure^2 / sigma)`` for every pair).
        sigma: Of the Gaussian.
        limit: Boxes that are wanted, the best; None: all.
    """
    everything = torch.arange(len(scores), device=scores.device)

    def factors(rows: Tensor) -> Tensor:
        measure = pairs(rows, everything).clamp_(min=0)  # (R, K)
        if decay == 'gaussian':
            return measure.square_().div_(-sigma).exp_()
        return measure.mul_(measure.ge(threshold)).neg_().add_(1)

    held = factors(everything) if len(scores) <= SOFT_AT_ONCE else None
    left, taken = scores.clone(), torch.zeros_like(scores, dtype=torch.bool)
    index, final = [everything[:0]], [scores[:0]]
    for _ in everything[:limit]:
        score, best = left.max(0)
        if score <= score_thr:
            break
        index.append(best[None])
        final.append(score[None])
        taken[best] = True
        left.mul_(factors(best[None])[0] if held is None else held[best]).masked_fill_(taken, -1.0)
    found = torch.cat(index)
    return Suppressed(found, pairs.boxes[found], torch.cat(final))


def weighted_boxes_fusion(pairs: BoxPairs, scores: Tensor, threshold: float, models: int = 1) -> Suppressed:
    """Weighted boxes fusion (Solovyev et al., "Weighted boxes fusion", 2021, arXiv 1910.13302, section 3).

    Boxes are taken by falling score. Each joins the fused box that it overlaps most, if by more than the threshold, or
    begins one of its own; a fused box is the mean of its boxes weighted by their scores, which the next one is held
    against. So a chain of boxes moves the mean along, unlike in ``cluster_nms``, where the best box stays the measure.

    Args:
        pairs: The boxes' pairs, by falling score.
        scores: (K,).
        threshold: The paper's 0.55.
        models: N of the paper, what could have found an object: a fused score is the mean of its T boxes' times
            ``min(T, N) / N`` (equation 5). 1 leaves the mean.

    Returns:
        By falling score; the index is that of the best box of each.
    """
    everything = torch.arange(len(scores), device=scores.device)
    parts = torch.cat((pairs.boxes * scores[:, None], scores[:, None], torch.ones_like(scores[:, None])), 1)
    sums = torch.zeros_like(parts)  # (K, 6) of each fused box in the place of its best: boxes, scores and their number
    for start in range(0, len(scores), FUSED_AT_ONCE):
        block = everything[start:start + FUSED_AT_ONCE]
        sums.index_add_(0, _joined(pairs, parts, sums, block, threshold), parts[block])
    first = sums[:, 5].nonzero().squeeze(1)
    boxes, weight, count = sums[first].split((4, 1, 1), 1)
    final = (weight / count * count.clamp(max=models) / models).squeeze(1)
    order = final.argsort(descending=True, stable=True)
    return Suppressed(first[order], (boxes / weight.clamp(min=1e-12))[order], final[order])


def _joined(pairs: BoxPairs, parts: Tensor, sums: Tensor, block: Tensor, threshold: float) -> Tensor:
    """The fused box (S,), by its best box, that each box of a block joins.

    Which one depends on what the boxes before it have joined. As in greedy suppression all are settled at once, until
    nothing changes: each round settles at least one more for good, and usually all are after a few.

    Args:
        pairs: Of all boxes.
        parts: (K, 6) what each adds to a fused box.
        sums: (K, 6) fused boxes before the block.
        block: (S,) numbers of its boxes.
        threshold: See above.
    """
    known = sums[:, 5].nonzero().squeeze(1)  # (F,)
    place, never = block - block[:1], len(sums)
    before = _with_fused(pairs, sums[known], known, block)  # (F, S)
    joined = block
    while True:
        same = joined[:, None] == joined
        after = sums[joined] + same.tril().to(parts) @ parts[block]  # (S, 6) the fused boxes as each box leaves them
        following = torch.where(same.triu(1), place, never).amin(1)  # (S,) the box that changes them next
        changed = torch.full_like(sums[:, 0], never).scatter_reduce_(0, joined, place.to(sums), 'amin')[known]
        measure = torch.cat((before.masked_fill(changed[:, None] < place, -1.0),
                             _with_fused(pairs, after, joined, block).masked_fill(
                                 (place[:, None] >= place) | (following[:, None] < place), -1.0)))
        most = measure.amax(0)
        choice = torch.where(measure == most, torch.cat((known, joined))[:, None], never).amin(0)
        settled = torch.where(most > threshold, choice, block)
        if torch.equal(settled, joined):
            return settled
        joined = settled


def _with_fused(pairs: BoxPairs, sums: Tensor, best: Tensor, block: Tensor) -> Tensor:
    """Measure (F, S) of fused boxes, sums (F, 6) with the best boxes (F,), with the boxes of a block (S,)."""
    boxes = torch.cat((sums[:, :4] / sums[:, 4:5].clamp(min=1e-12), pairs.boxes[block]))
    labels = None if pairs.labels is None else pairs.labels[torch.cat((best, block))]
    place = torch.arange(len(boxes), device=boxes.device)
    return replace(pairs, boxes=boxes, labels=labels)(place[:len(best)], place[len(best):])


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


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, options: NMSOptions, score_thr: float = 0.0,
             limit: int | None = None) -> Suppressed:
    """Suppress the duplicates of one image: boxes (K, 4), scores (K,) and labels (K,) in any order.

    Boxes that a method decays to ``score_thr`` or below are dropped, and all but the best ``limit``. The indices of
    what is left point into the input.
    """
    order = scores.argsort(descending=True, stable=True)
    scores = scores[order]
    pairs = BoxPairs(boxes[order], None if options.class_agnostic else labels[order], options.overlap,
                     options.type == 'diou')
    if options.type == 'wbf':
        left = weighted_boxes_fusion(pairs, scores, options.iou_threshold, options.votes)
    elif options.type == 'soft':
        left = soft_nms(pairs, scores, options.iou_threshold, score_thr, options.decay, options.sigma, limit)
    else:
        mode = options.mode if options.type == 'cluster' else 'plain'
        left = cluster_nms(pairs, scores, options.iou_threshold, mode, options.votes, limit)
    above = (left.scores > score_thr).nonzero().squeeze(1)[:limit]
    return Suppressed(order[left.indices[above]], left.boxes[above], left.scores[above])
