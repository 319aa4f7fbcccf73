"""The detector as one graph of tensors: from pixels to boxes, for exporters that follow a forward pass.

Shapes: B images, H x W the input in pixels, N cells over all levels, K candidates of suppression, C classes.
"""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.backends.fast import folded
from mgdet_plugin.deploy.export.suppression_graph import check_suppression, suppressed
from mgdet_plugin.models.maths.grid import CellGrid
from mgdet_plugin.models.multigrid_detector import MultiGridDet
from mgdet_plugin.models.multigrid_head import MultiGridHead

DECODED, DETECTIONS = ('boxes', 'scores', 'class_probs'), ('boxes', 'scores', 'labels')
MAPS = ('map_32', 'map_16', 'map_8')
INPUT = 'images'


class DetectorGraph(nn.Module):
    """Pixels of letterboxed pictures to boxes, normalisation folded into the convolutions.

    Args:
        model: A MultiGridDet; it is copied.
        nms: Suppress duplicates in the graph by the head's ``test_cfg``.
        with_maps: Give the raw maps, too.

    Raises:
        UserError: The model is another, or its suppression cannot be part of a graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: BaseDetector, nms: bool = False, with_maps: bool = False) -> None:
        super().__init__()
        if not isinstance(model, MultiGridDet) or not isinstance(model.bbox_head, MultiGridHead):
            raise UserError(f'a {type(model).__name__} cannot be exported; give weights and config of a MultiGridDet')
        self.settings: Mapping[str, Any] = model.bbox_head.test_cfg
        if nms:
            check_suppression(self.settings)
        self.nms, self.with_maps = nms, with_maps
        model = copy.deepcopy(model).cpu().float()
        folded(model)
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.bbox_head
        preprocessor = model.data_preprocessor
        if not preprocessor.pad_size_divisor % 32 == 0 or not preprocessor._channel_conversion:
            raise UserError('a model is exported whose data_preprocessor has bgr_to_rgb=True and pad_size_divisor=32, '
                            f'as in our configs, got {preprocessor}')
        normalises = preprocessor._enable_normalize
        for name, neutral in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name) if normalises else torch.tensor(neutral)
            self.register_buffer(name, value.detach().clone().float().reshape(1, -1, 1, 1))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` gives."""
        return (DETECTIONS if self.nms else DECODED) + (MAPS if self.with_maps else ())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes of pictures.

        Args:
            images: (B, 3, H, W) uint8 in RGB, letterboxed; H and W multiples of 32.

        Returns:
            ``boxes`` (B, N, 4) in input pixels, not clipped, ``scores`` (B, N) and ``class_probs`` (B, N, C); with
            suppression ``boxes`` (B, K, 4), ``scores`` (B, K) by falling score, -1 of no detection, and ``labels``
            (B, K). Then raw maps, coarse to fine, if asked for.
        """
        images = (images.float() - self.mean) / self.std
        maps = self.head(self.neck(self.backbone(images)))
        decoded = self.head.bbox_coder.decode(maps, traced_grid(maps, self.head.strides))
        found = suppressed(decoded, self.settings) if self.nms else decoded
        return (*found, *(maps if self.with_maps else ()))


def traced_grid(maps: Sequence[Tensor], strides: Sequence[int]) -> CellGrid:
    """The cell grid of maps (B, D, H_l, W_l) by operations alone, so that a traced graph follows their sizes."""
    levels, cols, rows, sides = [], [], [], []
    for index, (level, stride) in enumerate(zip(maps, strides)):
        ones = torch.ones_like(level[0, 0])  # (H, W)
        cols.append((ones.cumsum(1) - 1).flatten())
        rows.append((ones.cumsum(0) - 1).flatten())
        levels.append(torch.full_like(cols[-1], index, dtype=torch.long))
        sides.append(torch.full_like(cols[-1], stride))
    return CellGrid(torch.cat(levels), torch.cat(cols), torch.cat(rows), torch.cat(sides), ())
