"""A detector of torch made faster for prediction alone."""
from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from mgdet_plugin.models.multigrid_detector import MultiGridDet


def folded(model: nn.Module) -> nn.Module:
    """The model with each batch normalisation folded into the convolution before it, in place."""
    fused: nn.Module = fuse_conv_bn(model.eval())
    return fused


def hasten(model: BaseDetector, precision: str = 'fp32') -> None:
    """Give a detector without batch normalisation the layout and precision it is fastest in, in place.

    Args:
        model: See :func:`folded`.
        precision: 'bf16' lets convolutions of a MultiGridDet compute in bfloat16, in which its maps are decoded in
            single; 'fp32' leaves them.
    """
    model.to(memory_format=torch.channels_last)
    dtype = torch.float32
    if precision == 'bf16' and isinstance(model, MultiGridDet):
        dtype = torch.bfloat16
        for part in (model.backbone, model.neck, model.bbox_head):
            part.to(dtype)

    def prepare(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (given[0].to(dtype).contiguous(memory_format=torch.channels_last), )

    model.backbone.register_forward_pre_hook(prepare)
