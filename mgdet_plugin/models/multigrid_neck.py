"""The neck of MultiGridDet: YOLOv3's, at half its width."""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError


class LateralBlock(BaseModule):
    """1x1, 3x3 and 1x1 convolutions: (B, in_channels, H, W) -> (B, out_channels, H, W); inside twice as many."""

    def __init__(self, in_channels: int, out_channels: int, conv_cfg: OptConfigType, norm_cfg: ConfigType,
                 act_cfg: ConfigType) -> None:
        super().__init__()
        cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv1 = ConvModule(in_channels, out_channels, 1, **cfg)
        self.conv2 = ConvModule(out_channels, 2 * out_channels, 3, padding=1, **cfg)
        self.conv3 = ConvModule(2 * out_channels, out_channels, 1, **cfg)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.conv3(self.conv2(self.conv1(x)))


@MODELS.register_module()
class MultiGridNeck(BaseModule):
    """Top-down feature pyramid of MultiGridDet.

    Per level, coarse to fine: a :class:`LateralBlock`; its output goes to the head and, through a 1x1
    convolution and nearest upsampling by two, joins the next finer backbone map (upsampled channels first).

    Args:
        in_channels: Channels of the backbone maps, coarse (stride 32) first.
        out_channels: Channels of the output maps, coarse first; the upsampled map has those of the next level.
        conv_cfg: Config of the convolutions. Default: plain ones.
        norm_cfg: Config of the normalisation.
        act_cfg: Config of the activation.
        init_cfg: Config of the initialisation.

    Raises:
        UserError: If the two lists differ in length.
    """

    def __init__(self, in_channels: Sequence[int] = (1024, 512, 256), out_channels: Sequence[int] = (256, 128, 64),
                 conv_cfg: OptConfigType = None,
                 norm_cfg: ConfigType = dict(type='BN', eps=1e-3, momentum=0.01),
                 act_cfg: ConfigType = dict(type='LeakyReLU', negative_slope=0.1),
                 init_cfg: OptMultiConfig = dict(
                     type='Kaiming', layer='Conv2d', a=0.1, nonlinearity='leaky_relu')) -> None:
        super().__init__(init_cfg)
        if len(in_channels) != len(out_channels):
            raise UserError(f'in_channels and out_channels must have one entry a level, got {list(in_channels)} and '
                            f'{list(out_channels)}')
        cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        joined = [0, *out_channels[1:]]  # channels that come from the level above
        self.blocks = nn.ModuleList(
            LateralBlock(from_backbone + from_above, out, **cfg)
            for from_backbone, from_above, out in zip(in_channels, joined, out_channels))
        self.up_convs = nn.ModuleList(
            ConvModule(coarse, fine, 1, **cfg) for coarse, fine in itertools.pairwise(out_channels))

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mix the backbone maps (B, in_channels[i], H_i, W_i), fine to coarse as backbones give them, top down.

        Returns:
            Maps (B, out_channels[i], H_i, W_i), coarse to fine.
        """
        x = feats[-1]
        outs = []
        for level, block in enumerate(self.blocks):
            outs.append(block(x))
            if level < len(self.up_convs):
                up = nn.functional.interpolate(self.up_convs[level](outs[-1]), scale_factor=2, mode='nearest')
                x = torch.cat((up, feats[-2 - level]), 1)
        return tuple(outs)
