"""Detectors whose losses and predictions come out of one forward pass, and parts of the batch in what it gives."""
from __future__ import annotations

from typing import Any

from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

from mgdet_plugin.models.multigrid_head import MultiGridHead

_OWN_LOSS = (BaseDenseHead.loss, MultiGridHead.loss)
_OWN_PREDICT = (BaseDenseHead.predict, MultiGridHead.predict)


def is_one_pass(model: nn.Module) -> bool:
    """Whether losses and predictions of a detector come out of one forward pass here."""
    head: Any = type(getattr(model, 'bbox_head', None))
    return isinstance(model, SingleStageDetector) and issubclass(head, BaseDenseHead) and (
        head.loss in _OWN_LOSS and head.predict in _OWN_PREDICT)


def head_outputs(model: Any, features: Any) -> tuple[Any, ...]:
    """What the head of a one-pass detector gives for a neck's maps: the arguments of its ``loss_by_feat``."""
    outs = model.bbox_head(features)
    return (outs, ) if isinstance(model.bbox_head, MultiGridHead) else outs  # which takes its maps as one argument


def images_of(outs: Any, part: slice) -> Any:
    """A part of the images of nested maps (B, ...)."""
    return outs[part] if isinstance(outs, Tensor) else type(outs)(images_of(each, part) for each in outs)
