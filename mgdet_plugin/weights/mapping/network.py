"""The network's side of an import: which tensors the model of a config has."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.overrides import TorchFunctionMode

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, config_path
from mgdet_plugin.weights.mapping.architecture import Part

DEFAULT_CONFIG = CONFIGS / 'mgdet_model5_stage1.py'


@dataclass(frozen=True)
class Network:
    """What the model of a config looks like."""

    shapes: dict[str, tuple[int, ...]]  # of every tensor of the state dict, in its order
    num_classes: int  # of the head, 0 for a backbone alone


def load_config(path: str | Path | None, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Read a config that has a model.

    Args:
        path: Config file, or the name of a config of the package. Default: ``configs/mgdet_model5_stage1.py``.
        cfg_options: Dotted keys to set, as ``--cfg-options`` takes them.

    Raises:
        UserError: The file cannot be read as a config, or has no ``model.backbone``.
    """
    path = config_path(path or DEFAULT_CONFIG)
    config = Config.fromfile(path)
    config.merge_from_dict(dict(cfg_options or {}))
    if not isinstance(config.get('model'), dict) or 'backbone' not in config.model:
        raise UserError(f'config {path} has no model.backbone; give a config of MultiGridDet with --config')
    return config


def anchors_per_scale(config: Config) -> tuple[int, ...]:
    """A of every scale, coarse first, from ``model.bbox_head.anchors``."""
    try:
        return tuple(len(scale) for scale in config.model.bbox_head.anchors)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError('the config has no model.bbox_head.anchors, a list of (width, height) for each scale; give a '
                        'config of MultiGridDet with --config') from error


def build_empty(config: Config, part: Part = 'model') -> nn.Module:
    """Build the config's model, or its backbone alone, without memory for parameters: load with ``assign=True``.

    Raises:
        UserError: The model cannot be built from the config.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    try:
        with EmptyOnMeta():
            model: nn.Module = MODELS.build(config.model if part == 'model' else config.model.backbone)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, ImportError, IndexError) as error:
        raise UserError(f'the model of the config cannot be built: {type(error).__name__}: {error}') from error
    return model


def describe_network(config: Config, part: Part) -> Network:
    """List the tensors of the config's model, or of its backbone with keys that still begin with ``backbone.``."""
    prefix = '' if part == 'model' else 'backbone.'
    state = build_empty(config, part).state_dict()
    shapes = {prefix + key: tuple(tensor.shape) for key, tensor in state.items()}
    return Network(shapes, config.model.bbox_head.num_classes if part == 'model' else 0)


class EmptyOnMeta(TorchFunctionMode):
    """Inside, a tensor made empty, as modules make their parameters, has a shape but no memory.

    Nor are random numbers drawn into it: torch would decompose the draw, and import for seconds what it needs for that.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}) | (dict(device='meta') if func is torch.empty else {}))


def torch_shape(keras_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in torch of an array of Keras: (kh, kw, in, out) -> (out, in, kh, kw); vectors stay."""
    return (keras_shape[3], keras_shape[2], *keras_shape[:2]) if len(keras_shape) == 4 else keras_shape


def to_torch(values: Any) -> torch.Tensor:
    """Tensor of a Keras array, kernels (kh, kw, in, out) turned to (out, in, kh, kw), contiguous."""
    tensor = torch.from_numpy(values)
    if tensor.dim() != 4:
        return tensor
    height, width, channels, out = tensor.shape
    # two transpositions of matrices: a third of the time of the one permutation of four axes
    rows = tensor.reshape(-1, out).t().contiguous().view(out, height * width, channels)
    return rows.transpose(1, 2).contiguous().view(out, channels, height, width)
