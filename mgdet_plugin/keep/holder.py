"""What takes the place of a detector's loss in a training step, where it is held to what its start weights think.

A batch has its new images first, then the old ones, and goes through the model as one, so that normalisation sees both
domains in every step. Labels teach on the new images; on the old ones the teacher does.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.holding import Scales, cell_terms, feature_term
from mgdet_plugin.keep.teacher import Teacher
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.models.maths.loss_terms import best_overlap
from mgdet_plugin.models.multigrid_head import MultiGridHead, spared_objects
from mgdet_plugin.models.one_pass import head_outputs, images_of, is_one_pass
from mgdet_plugin.plan.keeping import Keeping

PREFIX = 'loss_keep'
TOUCHES = 0.1  # intersection over union from which a box of the teacher belongs to a label
Losses = dict[str, Any]


class Holder:
    """The loss of a detector that is held to its start weights.

    Args:
        model: The detector, not wrapped.
        teacher: Its start weights.
        keeping: What it is told.
        form: 'maps', 'boxes' or 'features'.

    Attributes:
        weight: Factor on the loss of holding, set at each stage.
        known: Index of an old image -> what the teacher says of it, where that is kept; see :meth:`remember`.

    Raises:
        UserError: The detector cannot be held in this form.
    """

    def __init__(self, model: nn.Module, teacher: Teacher, keeping: Keeping, form: str) -> None:
        self.model: Any = model
        self.teacher, self.keeping, self.form = teacher, keeping, form
        self.weight = keeping.weight
        self.known: Mapping[int, Any] = {}
        head, name = getattr(model, 'bbox_head', None), type(model).__name__
        if form == 'maps' and not isinstance(head, MultiGridHead):
            raise UserError(f"keep.form='maps' holds the cells of a MultiGridHead, and {name} has a "
                            f"{type(head).__name__}; take form='boxes'")
        if not is_one_pass(model) and (form == 'features' or keeping.on_new in ('distil', 'spare')):
            raise UserError(f'{name} can only be held by its boxes on old images: leave out keep.form and keep.on_new')
        if keeping.on_new == 'distil' and form != 'maps':
            raise UserError(f"keep.on_new='distil' holds the cells of a MultiGridHead, and {name} is held by its "
                            f"{form}; take 'spare'")
        if keeping.cache and form == 'features':
            raise UserError("keep.cache keeps maps and boxes, and here the backbone's features are held; leave it out")
        self.scales = scales_of(head, keeping.temperature) if isinstance(head, MultiGridHead) else Scales()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it the detector's ``loss`` is this one; outside of it nothing of this is seen by who copies it."""
        vars(self.model)['loss'] = self.loss
        try:
            yield
        finally:
            del vars(self.model)['loss']

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Losses:
        """Losses of a batch: the detector's own on new images, and those of holding under names of their own."""
        count = sum(not sample.get('kept', False) for sample in batch_data_samples)
        new, old = batch_data_samples[:count], batch_data_samples[count:]
        if hasattr(self.model, 'labelled'):
            new = self.model.labelled(new)
        if self.form == 'boxes':
            old = self._taught(batch_inputs[count:], old)
            if not is_one_pass(self.model):
                return self._together(batch_inputs, [*new, *old])
        seen: list[tuple[Tensor, ...]] = []
        handle = self.model.backbone.register_forward_hook(lambda module, given, maps: seen.append(maps))
        try:
            outs = head_outputs(self.model, self.model.extract_feat(batch_inputs))
        finally:
            handle.remove()
        if self.keeping.on_new == 'spare':
            new = self._spared(batch_inputs[:count], new)
        losses = self._own(images_of(outs, slice(count)), new)
        if self.form == 'maps':
            return losses | self._weighed(self._maps(outs[0], batch_inputs, new, old))
        if self.form == 'boxes' and old:
            theirs = self._own(images_of(outs, slice(count, None)), old)
            return losses | self._weighed({name.replace('loss', PREFIX, 1): value for name, value in theirs.items()
                                           if 'loss' in name})
        if old:
            goal = self.teacher.features(batch_inputs[count:])
            losses |= self._weighed({f'{PREFIX}_features': feature_term(images_of(seen[0], slice(count, None)), goal)})
        return losses

    def _own(self, outs: tuple[Any, ...], samples: SampleList) -> Losses:
        """The detector's own losses of samples, from what its head gave for them."""
        gt, ignored, metas = unpack_gt_instances(samples)
        found: Losses = self.model.bbox_head.loss_by_feat(*outs, gt, metas, ignored)
        return found

    def _weighed(self, losses: Losses) -> Losses:
        return {name: [each * self.weight for each in value] if isinstance(value, list) else value * self.weight
                for name, value in losses.items()}

    def _together(self, inputs: Tensor, samples: SampleList) -> Losses:
        """Losses of a detector that cannot tell those of old images apart."""
        if self.weight != 1:
            raise UserError(f'{type(self.model).__name__} gives one loss for all images of a batch, so keep.weight '
                            f'must be 1, got {self.weight:g}; change keep.share in its place')
        found: Losses = type(self.model).loss(self.model, inputs, samples)
        return found

    def _maps(self, maps: tuple[Tensor, ...], inputs: Tensor, new: SampleList, old: SampleList) -> Losses:
        """Terms of every cell of the old images and, if asked for, of those of new images that no label touches."""
        count, anchors = len(new), self.model.bbox_head.num_anchors
        cells, found = flatten_maps(maps), []
        if old:
            goal = self._remembered(old, inputs.device)
            if goal is None:
                goal = flatten_maps(self.teacher.maps(inputs[count:]))
            found.append(cell_terms(cells[count:], goal, anchors, self.scales))
        if self.keeping.on_new == 'distil':
            goal = flatten_maps(theirs := self.teacher.maps(inputs[:count]))
            found.append(cell_terms(cells[:count], goal, anchors, self.scales, self._untouched(goal, theirs, new)))
        return {name: sum(terms[name] for terms in found) for name in (found[0] if found else ())}

    def _untouched(self, goal: Tensor, maps: tuple[Tensor, ...], samples: SampleList) -> Tensor:
        """(B, N) 1 for the cells whose box, as the teacher has it, touches no label, else 0."""
        coder = self.teacher.model.bbox_head.bbox_coder
        boxes = coder.decode_cells(goal, coder.grid(maps))
        labels = spared_objects([sample.gt_instances for sample in samples])
        return (best_overlap(boxes, labels, 'iou') < TOUCHES).to(boxes)

    def remember(self, known: Mapping[int, Any]) -> None:
        """Take what the teacher said of old images that are not augmented: cells (N, D), or detections."""
        self.known = known

    def _remembered(self, old: SampleList, device: torch.device) -> Tensor | None:
        """Cells (B, N, D) of the teacher for old images, where they are kept."""
        if not self.known:
            return None
        return torch.stack([torch.as_tensor(self.known[sample.kept_index]) for sample in old]).to(device)

    def _taught(self, inputs: Tensor, old: SampleList) -> SampleList:
        """Old images with the teacher's detections for labels, in input pixels: sure ones true, the others ignored."""
        if not old:
            return old
        found = [self.known[sample.kept_index] for sample in old] if self.known else self.teacher.detect(inputs, old)
        taught = []
        for sample, each in zip(old, found):
            sure = each.scores >= self.keeping.sure
            unsure = ~sure & (each.scores >= self.keeping.unsure)
            sample = sample.new()
            sample.gt_instances = InstanceData(bboxes=each.bboxes[sure], labels=each.labels[sure])
            sample.ignored_instances = InstanceData(bboxes=each.bboxes[unsure], labels=each.labels[unsure])
            taught.append(sample)
        return taught

    def _spared(self, inputs: Tensor, new: SampleList) -> SampleList:
        """New images whose ignored regions have the teacher's boxes, too, that touch no label."""
        spared = []
        for sample, each in zip(new, self.teacher.detect(inputs, new)):
            seen = each.bboxes[each.scores >= self.keeping.sure]
            apart = best_overlap(seen[None], spared_objects([sample.gt_instances]), 'iou')[0] < TOUCHES
            given = sample.get('ignored_instances')
            boxes = [seen[apart]] if given is None else [get_box_tensor(given.bboxes), seen[apart]]
            sample = sample.new()
            sample.ignored_instances = InstanceData(bboxes=torch.cat(boxes))
            spared.append(sample)
        return spared


def scales_of(head: MultiGridHead, temperature: float) -> Scales:
    """The scales of a head's own loss."""
    loss = head.loss_module
    return Scales(loss.coord_scale, loss.object_scale, loss.no_object_scale, loss.class_scale, loss.anchor_scale,
                  head.bbox_coder.xy_scale, loss.use_softmax, temperature)
