"""True freezing: no gradient, no weight change and no change of running statistics.

A frozen Keras layer computes its normalisation with the stored statistics; so do ours. ``requires_grad`` alone
would let them drift.
"""
from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mgdet_plugin.errors import UserError

# Keras's meaning: 2 leaves only the three predict convolutions, 1 frees neck and head, 0 everything.
FREEZE_LEVELS: dict[int, tuple[str, ...]] = {
    0: (),
    1: ('backbone', ),
    2: ('backbone', 'neck', 'bbox_head.bridges'),
}


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of a distributed wrapper."""
    inner = model.module if is_model_wrapper(model) else model
    assert isinstance(inner, nn.Module)
    return inner


def is_frozen(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter or module of this dotted name lies under one of the prefixes."""
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def freeze(model: nn.Module, level: int) -> list[nn.Module]:
    """Freeze a detector to a level and thaw the rest.

    Call it after the optimizer was built over all parameters: mmengine's constructor drops those frozen before.

    Args:
        model: The detector, wrapped or not.
        level: A key of ``FREEZE_LEVELS``.

    Returns:
        The frozen normalisation layers; they must be put in eval mode again after every ``model.train()``.

    Raises:
        UserError: If the model has no part of a frozen name.
    """
    model, prefixes = unwrap(model), FREEZE_LEVELS[level]
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(is_frozen(name, (prefix, )) for name in names):
            raise UserError(f"freeze_level {level} freezes '{prefix}', but the {type(model).__name__} has no such part")
    for name, parameter in model.named_parameters():
        frozen = is_frozen(name, prefixes)
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None
    norms: list[nn.Module] = [module for name, module in model.named_modules()
             if isinstance(module, _NormBase) and is_frozen(name, prefixes)]
    hold(norms)
    return norms


def hold(norms: Sequence[nn.Module]) -> None:
    """Put frozen normalisation layers in eval mode."""
    for norm in norms:
        norm.eval()
