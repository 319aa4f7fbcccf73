"""The weights a run starts from, asked what they think of images: they hold the run's model to it.

A teacher is no part of the run's model: it is in no checkpoint, no optimizer and no moving average, and
``model.train()`` does not wake its normalisation.
"""
from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.multigrid_head import MultiGridHead

SILENT = -1e4  # a logit whose probability is 0, within the range of half precision


class Teacher:
    """A detector of mmdet that only looks.

    Args:
        model: The run's model, not wrapped; a copy of it is made.
        state: Name -> tensor of the weights to ask.
        new_classes: Indices of classes the weights do not know: they are never seen.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], new_classes: Collection[int] = ()) -> None:
        self.model: Any = copy.deepcopy(model)
        self.model.load_state_dict(state)
        self.model.requires_grad_(False).eval()
        self.new_classes = frozenset(new_classes)
        head = getattr(self.model, 'bbox_head', None)
        if isinstance(head, MultiGridHead):
            silence(head, self.new_classes)

    @torch.no_grad()
    def maps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Raw maps of normalised images (B, 3, H, W) of a detector with a dense head."""
        found: tuple[Tensor, ...] = self.model.bbox_head(self.model.extract_feat(inputs))
        return found

    @torch.no_grad()
    def features(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps of the backbone for normalised images (B, 3, H, W)."""
        found: tuple[Tensor, ...] = self.model.backbone(inputs)
        return found

    @torch.no_grad()
    def detect(self, inputs: Tensor, samples: SampleList, rescale: bool = False) -> list[InstanceData]:
        """Detections in normalised images (B, 3, H, W): boxes in input pixels, or in those of the original picture.

        The samples are not changed.
        """
        found = self.model.predict(inputs, [copy.copy(sample) for sample in samples], rescale=rescale)
        return [self._known(sample.pred_instances) for sample in found]

    def _known(self, found: InstanceData) -> InstanceData:
        """Detections of the classes the weights know."""
        if not self.new_classes or not len(found):
            return found
        return found[torch.tensor([int(label) not in self.new_classes for label in found.labels])]


@torch.no_grad()
def silence(head: MultiGridHead, classes: Collection[int]) -> None:
    """Let a head never see some classes: the softmax over all columns becomes that over the others'."""
    first = 5 + head.num_anchors
    for conv in head.predict_convs:
        for index in classes:
            conv.get_parameter('weight')[first + index] = 0
            conv.get_parameter('bias')[first + index] = SILENT


def class_indices(given: Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """Indices of classes that are given by name or index.

    Raises:
        UserError: A name is none of the model's classes, or an index is out of range.
    """
    found = []
    for each in given:
        index = each if isinstance(each, int) and not isinstance(each, bool) else (
            names.index(each) if each in names else -1)
        if not 0 <= index < len(names):
            raise UserError(f"keep.new_classes has {each!r}, which is no class of the model; it has {', '.join(names)}")
        found.append(index)
    return tuple(found)
