"""The MultiGrid loss.

Shapes: B images, L levels, N cells over all levels, A anchors, C classes, G objects of an image (padded),
P positive cells, D = 5 + A + C.
"""
from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import OptConfigType, reduce_mean
from torch import Tensor, nn
from torch.nn import functional as F

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths import loss_terms
from mgdet_plugin.models.maths.overlaps import check_overlap_kind, overlap
from mgdet_plugin.models.multigrid_assigner import MultiGridTargets
from mgdet_plugin.models.multigrid_bbox_coder import split_fields

NORMALIZERS = ('batch', 'positives', 'grid')
CLASS_WEIGHTS = ('balanced', 'inverse', 'sqrt_inverse')  # computed from the counts of the training set
RECIPE_SCALES = dict(coord_scale=5.0, object_scale=1.0, no_object_scale=0.5, class_scale=1.0, anchor_scale=1.0)
RECIPE: dict[str, Any] = {**RECIPE_SCALES, 'normalizers': ('batch', ), 'counted': None, 'class_weights': None}
BALANCED_RANGE = (0.1, 10.0)


@dataclass(frozen=True)
class MultiGridPredictions:
    """What the loss needs of a forward pass.

    Attributes:
        objectness: (B, N) logits.
        positive: (P, D) raw channels of the positive cells.
        boxes: (B, N, 4) boxes as the coder decodes them, with each cell's most likely or expected anchor, in pixels.
        positive_boxes: (P, 4) boxes of the positive cells, with their assigned or expected anchor, in pixels.
        positive_xy: (P, 2) activated xy of the positive cells, in cells.
        objects: (B, G, 4) objects of each image in pixels, padded with empty boxes: what the ignore mask spares.
    """
    objectness: Tensor
    positive: Tensor
    boxes: Tensor
    positive_boxes: Tensor
    positive_xy: Tensor
    objects: Tensor


@MODELS.register_module()
class MultiGridLoss(nn.Module):
    """Coordinates, objectness, anchor and class of MultiGridDet, with the options of its recipes.

    Each term is divided, level by level, by the product of the chosen normalisers and summed over levels:
    ``coord_scale * coord + objectness + anchor_scale * anchor + class_scale * class``. No overlap carries a
    gradient but that of ``iou_loss``. The defaults of the scales are model5's; fine-tuning must not change them.

    Args:
        coord_scale: Scale of the coordinate term.
        object_scale: Weight of positive cells in the objectness term.
        no_object_scale: Weight of the other cells in it.
        class_scale: Scale of the class term.
        anchor_scale: Scale of the anchor term.
        normalizers: Any of 'batch' (images), 'positives' (positive cells of the level, at least 1) and 'grid'
            (images times cells of the level).
        ignore_thr: Cells without an object whose box overlaps an object of the image by more than this do not
            count as negatives.
        overlap: Measure of every overlap here, 'iol' or 'iou'.
        overlap_weighted_coord: Weigh coordinates by ``m + (1 - m) * overlap^p`` of the cell's box with its object.
        overlap_min: The m of that weight.
        overlap_power: The p of that weight.
        iou_aware_ratio: r of the objectness target ``r * overlap^p + (1 - r)`` of positive cells.
        iou_aware_power: The p of that target.
        soft_ignore_weight: Weight of ignored cells in the objectness term: ``weight * overlap^power``, a penalty
            on duplicates. 0 leaves them out.
        soft_ignore_power: The power of that weight.
        label_smoothing: Of the class term; anchors are never smoothed.
        use_softmax: Softmax cross-entropy for anchors and classes; False: binary cross-entropy (older weights).
        class_weights: A factor a class, or one of ``CLASS_WEIGHTS`` to compute them from the training set (see
            :func:`counted_weights` and ``ClassWeightsHook``). By true class with softmax, by column without.
        focal: Focal class term.
        consensus_scale: Weight of the consensus term over each object's cells, divided by the number of centre
            cells.
        objectness_gamma: g of the factor ``|target - p|^g`` on the objectness term (quality focal loss, Li et al.,
            NeurIPS 2020, eq. 3). 0: none.
        cell_weight_power: q of the factor ``(overlap / best overlap of the object's cells)^q`` on the coordinate,
            anchor and class terms of a cell. 0: all cells of an object count alike.
        iou_loss: Config of one of mmdet's box losses (GIoULoss, DIoULoss, CIoULoss) to use in place of the squared
            coordinate error.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(self,
                 coord_scale: float = 5.0,
                 object_scale: float = 1.0,
                 no_object_scale: float = 0.5,
                 class_scale: float = 1.0,
                 anchor_scale: float = 1.0,
                 normalizers: Sequence[str] = ('batch',),
                 ignore_thr: float = 0.5,
                 overlap: str = 'iol',
                 overlap_weighted_coord: bool = True,
                 overlap_min: float = 0.25,
                 overlap_power: float = 1.0,
                 iou_aware_ratio: float = 0.0,
                 iou_aware_power: float = 1.0,
                 soft_ignore_weight: float = 0.0,
                 soft_ignore_power: float = 2.0,
                 label_smoothing: float = 0.0,
                 use_softmax: bool = True,
                 class_weights: Sequence[float] | str | None = None,
                 focal: bool = False,
                 consensus_scale: float = 0.0,
                 objectness_gamma: float = 0.0,
                 cell_weight_power: float = 0.0,
                 iou_loss: OptConfigType = None) -> None:
        super().__init__()
        self.coord_scale = _checked('coord_scale', coord_scale)
        self.object_scale = _checked('object_scale', object_scale)
        self.no_object_scale = _checked('no_object_scale', no_object_scale)
        self.class_scale = _checked('class_scale', class_scale)
        self.anchor_scale = _checked('anchor_scale', anchor_scale)
        self.normalizers = _checked_normalizers(normalizers)
        self.ignore_thr = _checked('ignore_thr', ignore_thr)
        self.overlap = check_overlap_kind(overlap)
        self.overlap_weighted_coord = overlap_weighted_coord
        self.overlap_min = _checked('overlap_min', overlap_min, 1.0)
        self.overlap_power = _checked('overlap_power', overlap_power)
        self.iou_aware_ratio = _checked('iou_aware_ratio', iou_aware_ratio, 1.0)
        self.iou_aware_power = _checked('iou_aware_power', iou_aware_power)
        self.soft_ignore_weight = _checked('soft_ignore_weight', soft_ignore_weight)
        self.soft_ignore_power = _checked('soft_ignore_power', soft_ignore_power)
        self.label_smoothing = _checked('label_smoothing', label_smoothing, 1.0)
        self.use_softmax = use_softmax
        self.focal = focal
        self.objectness_gamma = _checked('objectness_gamma', objectness_gamma)
        self.cell_weight_power = _checked('cell_weight_power', cell_weight_power)
        self.consensus_scale = _checked('consensus_scale', consensus_scale)
        self.iou_loss = MODELS.build(iou_loss) if iou_loss else None
        self.counted = class_weights if isinstance(class_weights, str) else None
        if self.counted not in (None, *CLASS_WEIGHTS):
            raise UserError(f"class_weights must be a list of factors, one of {CLASS_WEIGHTS} or None, got "
                            f"'{class_weights}'")
        weights = None if class_weights is None or self.counted else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor | None = weights  # no buffer: a moving average would pair it with another one's

    def recipe(self) -> MultiGridLoss:
        """A loss of the same terms at the scales that pretrained weights were trained to lower, whatever this one has.

        A validation loss is held against that of the pretrained model, of other runs and of other stages; at other
        scales it would not be the same quantity.
        """
        loss = copy.copy(self)
        vars(loss).update(RECIPE)
        return loss

    def set_class_counts(self, counts: Sequence[int]) -> Tensor:
        """Set the class weights (C,) of :func:`counted_weights`.

        Args:
            counts: (C,) objects of each class in the training set.
        """
        self.class_weights = counted_weights(torch.tensor(counts, dtype=torch.float32), self.counted or 'balanced')
        return self.class_weights

    def forward(self, pred: MultiGridPredictions, targets: MultiGridTargets) -> dict[str, Tensor]:
        """Losses of a batch: ``loss_coord``, ``loss_obj``, ``loss_anchor``, ``loss_cls`` (+ options), scaled."""
        fields = split_fields(pred.positive, targets.num_anchors)
        norm = self._level_norms(targets)  # (L,)
        positive_norm = norm[targets.grid.level[targets.cell]]  # (P,)
        with torch.no_grad():
            fit = overlap(pred.positive_boxes, targets.box, self.overlap)  # (P,)
        if self.cell_weight_power:
            positive_norm = positive_norm / loss_terms.cell_weights(fit, targets.gt, self.cell_weight_power)
        term = loss_terms.softmax_term if self.use_softmax else loss_terms.sigmoid_term
        factors = self._factors(fields.cls.shape[-1], pred.positive.device)
        cls = term(fields.cls, targets.label, self.label_smoothing, self.focal, factors)
        losses = dict(
            loss_coord=self.coord_scale * (self._coord(pred, targets, fields.wh, fit) / positive_norm).sum(),
            loss_obj=(self._objectness(pred, targets, fit) / norm[targets.grid.level]).sum(),
            loss_anchor=self.anchor_scale * (term(fields.anchor, targets.anchor) / positive_norm).sum(),
            loss_cls=self.class_scale * (cls / positive_norm).sum())
        if self.consensus_scale:
            losses['loss_consensus'] = self.consensus_scale * self._consensus(pred, targets)
        return losses

    def _level_norms(self, targets: MultiGridTargets) -> Tensor:
        """(L,) product of the normalisers of each level."""
        levels = len(targets.grid.map_sizes)
        norm = targets.xy.new_ones(levels)
        if 'batch' in self.normalizers:
            norm = norm * targets.num_images
        if 'positives' in self.normalizers:
            count = torch.bincount(targets.grid.level[targets.cell], minlength=levels).to(norm)
            norm = norm * reduce_mean(count).clamp(min=1)
        if 'grid' in self.normalizers:
            cells = norm.new_tensor([height * width for height, width in targets.grid.map_sizes])
            norm = norm * targets.num_images * cells
        return norm

    def _coord(self, pred: MultiGridPredictions, targets: MultiGridTargets, wh: Tensor, fit: Tensor) -> Tensor:
        """(P,) coordinate loss of each positive cell."""
        if self.iou_loss is None:
            term = (pred.positive_xy - targets.xy).square().sum(1) + (wh - targets.wh).square().sum(1)
        else:
            term = self.iou_loss(off_target(pred.positive_boxes, targets.box), targets.box, reduction_override='none')
        if self.overlap_weighted_coord:
            term = term * (self.overlap_min + (1 - self.overlap_min) * fit.pow(self.overlap_power))
        return term

    def _objectness(self, pred: MultiGridPredictions, targets: MultiGridTargets, fit: Tensor) -> Tensor:
        """(B, N) weighted objectness loss of each cell."""
        logits = pred.objectness
        best = loss_terms.best_overlap(pred.boxes.detach(), pred.objects, self.overlap)
        ignored = self.soft_ignore_weight * best.pow(self.soft_ignore_power)
        weight = torch.where(best > self.ignore_thr, ignored, torch.full_like(best, self.no_object_scale))
        goal = torch.zeros_like(logits)
        place = (targets.image, targets.cell)
        weight[place] = self.object_scale
        goal[place] = self.iou_aware_ratio * fit.pow(self.iou_aware_power) + (1 - self.iou_aware_ratio)
        return self.objectness_term(logits, goal, weight)

    def objectness_term(self, logits: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
        """Weighted cross-entropy of logits (...) with goals (...) in [0, 1], as quality focal loss if asked for."""
        if self.objectness_gamma:
            weight = weight * (goal - logits.sigmoid()).abs().pow(self.objectness_gamma)
        return weight * F.binary_cross_entropy_with_logits(logits, goal, reduction='none')

    @staticmethod
    def _consensus(pred: MultiGridPredictions, targets: MultiGridTargets) -> Tensor:
        """Consensus of the cells of each object over the number of centre cells."""
        stride = targets.grid.stride[targets.cell][:, None]
        boxes = pred.positive_boxes
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride
        sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=torch.finfo(boxes.dtype).tiny)
        owners, owner = targets.gt.unique(return_inverse=True)
        term = loss_terms.consensus_term(centres, sizes.log(), owner, len(owners))
        centre_cells = (targets.xy.floor() == 0).all(1).sum().clamp(min=1)
        return term.sum() / centre_cells

    def _factors(self, num_classes: int, device: torch.device) -> Tensor | None:
        """(C,) class weights on the device of the predictions, or None."""
        if self.counted and self.class_weights is None:
            warnings.warn(f"class_weights='{self.counted}' before the classes were counted: every class weighs 1. "
                          "Training counts them with dict(type='ClassWeightsHook')", stacklevel=3)
            self.class_weights = torch.ones(num_classes)
        if self.class_weights is None:
            return None
        if len(self.class_weights) != num_classes:
            raise UserError(f'class_weights must have one factor a class ({num_classes}), got '
                            f'{len(self.class_weights)}')
        return self.class_weights.to(device)


def counted_weights(counts: Tensor, method: str) -> Tensor:
    """Factors of classes (C,) by their objects (C,): 1 for a class never seen, others held to [0.1, 10].

    'balanced' is ``sum / (C * count)``, so that the weights of all objects have the mean 1 (scikit-learn's rule);
    'inverse' is ``1 / count`` and 'sqrt_inverse' its root, made to have the mean 1 over the classes that are seen.
    """
    seen = counts > 0
    if method == 'balanced':
        weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    else:
        weights = counts.clamp(min=1).pow(-0.5 if method == 'sqrt_inverse' else -1.0)
        weights = weights / weights[seen].mean() if seen.any() else weights
    return torch.where(seen, weights.clamp(*BALANCED_RANGE), 1.0)


def off_target(boxes: Tensor, targets: Tensor) -> Tensor:
    """Boxes (P, 4) with those that equal their target (P, 4) widened by 1e-4.

    mmdet's CIoU divides zero by zero at a perfect box, in value and in gradient.
    """
    width = (targets[:, 2] - targets[:, 0])[:, None]
    perfect = ((boxes - targets).abs() <= 1e-5 * width).all(1, keepdim=True)
    return boxes + torch.where(perfect, 1e-4 * width, 0.0) * boxes.new_tensor([0.0, 0.0, 1.0, 0.0])


def _checked(name: str, value: float, high: float = math.inf) -> float:
    if not 0 <= value <= high or not math.isfinite(value):
        raise UserError(f'{name} must be a number in [0, {high}], got {value}')
    return float(value)


def _checked_normalizers(normalizers: Sequence[str]) -> tuple[str, ...]:
    names = (normalizers,) if isinstance(normalizers, str) else tuple(normalizers)
    if not names or len(set(names)) != len(names) or any(name not in NORMALIZERS for name in names):
        raise UserError(f'normalizers must be distinct names out of {NORMALIZERS}, at least one, got {names}')
    return names
