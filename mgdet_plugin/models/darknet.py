"""Darknet53 at other widths."""
from __future__ import annotations

from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.backbones import Darknet
from mmdet.models.backbones.darknet import ResBlock
from mmdet.registry import MODELS
from mmengine.model import constant_init

from mgdet_plugin.common.errors import UserError


@MODELS.register_module()
class ScaledDarknet(Darknet):
    """mmdet's ``Darknet`` with every width multiplied by a factor: the same 52 convolutions and parameter names.

    Source: Redmon and Farhadi, "YOLOv3: An Incremental Improvement", table 1.

    Args:
        depth: Layers of the network; mmdet knows 53.
        widen_factor: Factor on every width; each scaled width must be a whole even number (residual blocks
            halve it). 1.0 gives mmdet's ``Darknet``.
        zero_init_residual: Start every residual block as the identity (its last norm's weight is 0): a network
            trained from nothing learns sooner (Goyal et al., "Accurate, Large Minibatch SGD", section 5.1).
        **kwargs: Arguments of ``Darknet``.

    Raises:
        UserError: If a scaled width is no whole even number.
    """

    arch_settings: dict[int, Any] = Darknet.arch_settings

    def __init__(self, depth: int = 53, widen_factor: float = 1.0, zero_init_residual: bool = False,
                 **kwargs: Any) -> None:
        if depth not in self.arch_settings:
            raise UserError(f'depth must be one of {tuple(self.arch_settings)}, got {depth}')
        layers, channels = self.arch_settings[depth]
        scaled = tuple((inner * widen_factor, outer * widen_factor) for inner, outer in channels)
        if any(width < 2 or width % 2 for pair in scaled for width in pair):
            raise UserError(f'widen_factor must make every width of {channels} a whole even number, got {widen_factor}')
        self.arch_settings = {depth: (layers, tuple((int(inner), int(outer)) for inner, outer in scaled))}
        super().__init__(depth=depth, **kwargs)
        self.zero_init_residual = zero_init_residual
        parts = {key: kwargs[key] for key in ('conv_cfg', 'norm_cfg', 'act_cfg') if key in kwargs}
        if widen_factor != 1:  # the parent's first convolution has a fixed width
            parts.setdefault('norm_cfg', dict(type='BN', requires_grad=True))
            parts.setdefault('act_cfg', dict(type='LeakyReLU', negative_slope=0.1))
            self.conv1 = ConvModule(3, self.channels[0][0], 3, padding=1, **parts)

    def init_weights(self) -> None:
        """Initialise as mmdet's ``Darknet``, residual blocks as the identity if asked for."""
        super().init_weights()
        if self.zero_init_residual:
            for module in self.modules():
                if isinstance(module, ResBlock):
                    constant_init(module.conv2.norm, 0)
