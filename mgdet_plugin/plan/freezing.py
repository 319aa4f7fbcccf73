"""True freezing: no gradient, no weight change and no change of running statistics.

A frozen Keras layer computes its normalisation with the stored statistics; so do ours. ``requires_grad`` alone
would let them drift, and so would a rate of 0.
"""
from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Stage

PREDICT_LAYERS: dict[str, tuple[str, ...]] = {
    'MultiGridHead': ('predict_convs', ),
    'YOLOV3Head': ('convs_pred', ),
    'RetinaHead': ('retina_cls', 'retina_reg'),
    'YOLOXHead': ('multi_level_conv_cls', 'multi_level_conv_reg', 'multi_level_conv_obj'),
    'FCOSHead': ('conv_cls', 'conv_reg', 'conv_centerness'),
    'ATSSHead': ('atss_cls', 'atss_reg', 'atss_centerness'),
    'GFLHead': ('gfl_cls', 'gfl_reg'),
    'RTMDetHead': ('rtm_cls', 'rtm_reg'),
}
"""Class of a head -> its last layers, which are all that freeze level 2 trains."""
TRUNK_PARTS = ('backbone', 'neck', 'bbox_head.bridges')
"""Parts of a ``MultiGridDet`` before the predict convolutions, in the order an image goes through them."""


@dataclass(frozen=True)
class Frozen:
    """What a stage holds still in a model.

    Attributes:
        parameters: Names of the frozen parameters.
        norms: Name -> frozen normalisation layer, to be put in eval mode again after every ``model.train()``.
    """
    parameters: frozenset[str]
    norms: dict[str, nn.Module]

    def tensors(self, model: nn.Module) -> list[str]:
        """Names in the state dict of all that must not change: parameters and the buffers of frozen layers."""
        kept = self.parameters.union(f'{name}.{buffer}' for name, norm in self.norms.items()
                                     for buffer, _ in norm.named_buffers(recurse=False))
        return [key for key in model.state_dict() if key in kept]


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of a distributed wrapper."""
    inner = model.module if is_model_wrapper(model) else model
    assert isinstance(inner, nn.Module)
    return inner


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name lies under a name, or matches a shell pattern as a whole or in its first parts."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f'{pattern}.*')


def is_frozen(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter or module of this dotted name is matched by one of the patterns."""
    return any(matches(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], model: nn.Module, what: str) -> None:
    """Refuse a pattern that matches no parameter; ``what`` says where it is given.

    Raises:
        UserError: With the pattern and the names that come near.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            modules = [name for name, _ in model.named_modules() if name]
            near = difflib.get_close_matches(pattern, modules, 3, 0.4) or [name for name, _ in model.named_children()]
            raise UserError(f"{what} names '{pattern}', but the {type(model).__name__} has no such part; there is "
                            f'{", ".join(near)}')


def predict_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of a detector's last layers.

    Raises:
        UserError: If its head is of a kind not known here.
    """
    head = getattr(model, 'bbox_head', None)
    for cls in type(head).__mro__:
        if cls.__name__ in PREDICT_LAYERS:
            names = tuple(f'bbox_head.{layer}' for layer in PREDICT_LAYERS[cls.__name__])
            return tuple(name for name in names if any(matches(key, name) for key, _ in model.named_parameters()))
    raise UserError(f'freeze_level 2 trains the last layers of the head, and which those of a {type(model).__name__} '
                    f'with a {type(head).__name__} are is not known; name them: train=[...] in place of freeze_level')


def frozen_of(stage: Stage, model: nn.Module) -> Frozen:
    """What a stage freezes in a model, wrapped or not; nothing is changed.

    Raises:
        UserError: If a pattern matches nothing, or everything would be frozen.
    """
    model = unwrap(model)
    names = [name for name, _ in model.named_parameters()]
    where = f"stage '{stage.name}'"
    check_patterns(stage.lr_mult, model, f'{where}: lr_mult')
    patterns, trains = _patterns(stage, model)
    check_patterns(patterns, model, f'{where}: {"train" if trains else "freeze"}')
    frozen = {name for name in names if is_frozen(name, patterns) != trains}
    if len(frozen) == len(names):
        raise UserError(f'{where} freezes every parameter of the {type(model).__name__}; leave something to train')
    return Frozen(frozenset(frozen), _norms(model, stage, frozen))


def _patterns(stage: Stage, model: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The patterns a stage goes by, and whether what they match trains (else it is frozen)."""
    if stage.train is not None or stage.freeze_level == 2:
        return (predict_layers(model) if stage.train is None else stage.train), True
    return (stage.freeze if stage.freeze is not None else ('backbone', ) * (stage.freeze_level or 0)), False


def _norms(model: nn.Module, stage: Stage, frozen: set[str]) -> dict[str, nn.Module]:
    """Normalisation layers whose parameters are all frozen; one without parameters goes by its name."""
    patterns, trains = _patterns(stage, model)
    norms: dict[str, nn.Module] = {}
    for name, module in statistics_layers(model).items():
        parameters = [f'{name}.{key}' for key, _ in module.named_parameters(recurse=False)]
        if frozen.issuperset(parameters) if parameters else is_frozen(name, patterns) != trains:
            norms[name] = module
    return norms


def trunk_of(model: nn.Module, frozen: Frozen) -> str:
    """The last part of a detector up to which everything is frozen, of :data:`TRUNK_PARTS`; '' where the first trains.

    Args:
        model: The detector, not wrapped.
        frozen: What a stage freezes in it.
    """
    last = ''
    for part in TRUNK_PARTS:
        own = {name for name, _ in model.named_parameters() if name.startswith(f'{part}.')}
        norms = {name for name in statistics_layers(model) if name.startswith(f'{part}.')}
        if not own or own - frozen.parameters or norms - set(frozen.norms):
            break
        last = part
    return last


def freeze(model: nn.Module, stage: Stage, built: Collection[str] = ()) -> Frozen:
    """Freeze a detector as a stage says and thaw the rest.

    Call it after the optimizer was built over all parameters (mmengine's constructor drops those frozen before) and,
    under DDP, after the model was wrapped.

    Args:
        model: The detector, wrapped or not.
        stage: The stage.
        built: Names of parameters that stay frozen in every stage, as the detector was built with them
            (``norm_cfg=dict(requires_grad=False)``).

    Returns:
        What is frozen now, with what the detector freezes by itself in ``train()`` (``frozen_stages``).

    Raises:
        UserError: If a pattern matches nothing, or everything would be frozen.
    """
    model = unwrap(model)
    frozen = frozen_of(stage, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen.parameters and name not in built)
    training = model.training
    model.train()  # a backbone with frozen_stages freezes them here, whatever was set before
    own = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.train(training)
    frozen = Frozen(frozenset(own), _norms(model, stage, own))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in own)
        if name in own:
            parameter.grad = None
    hold(frozen.norms.values())
    return frozen


def hold(norms: Iterable[nn.Module]) -> None:
    """Put frozen normalisation layers in eval mode."""
    for norm in norms:
        norm.eval()


def statistics_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer that keeps running statistics."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _NormBase)}


def digests(model: nn.Module) -> dict[str, str]:
    """A hash of every tensor of a model's state dict, by name (16 hexadecimal digits of BLAKE2b)."""
    return {key: digest(value) for key, value in unwrap(model).state_dict().items()}


def digest(tensor: Tensor) -> str:
    """A hash of a tensor's bytes."""
    content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def trained_parts(model: nn.Module, frozen: Frozen) -> list[str]:
    """Names of the detector's parts (backbone, neck, bbox_head) that have a parameter that trains, in order."""
    return list(dict.fromkeys(name.split('.')[0] for name, _ in unwrap(model).named_parameters()
                              if name not in frozen.parameters))
