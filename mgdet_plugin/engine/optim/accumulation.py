"""Gradient accumulation that never reaches over the end of an epoch, so never over an edge."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mgdet_plugin.plan.freezing import unwrap

KEY = 'gradients'  # in a checkpoint


def start_counting(optim_wrapper: OptimWrapper, done: int, steps: int) -> None:
    """Count iterations from the start of an epoch; its last, shorter group of iterations steps with its own mean.

    mmengine counts over the whole run and lets a group of iterations reach over an edge
    (``OptimWrapper.initialize_count_status``, which also warns anew at each call). Of this epoch's ``steps`` iterations
    ``done`` are done.
    """
    optim_wrapper._inner_count = done
    optim_wrapper._max_counts = steps
    optim_wrapper._remainder_counts = steps % optim_wrapper._accumulative_counts


class PendingGradients:
    """Gradients that wait for their step, of every process: in a checkpoint and out of it."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Tensor]] = []
        self._gathered: list[dict[str, Tensor]] = []

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep a checkpoint's until training begins."""
        self._loaded = list(checkpoint.get(KEY) or ())

    def restore(self, model: nn.Module) -> None:
        """Put this process's back, once."""
        own = self._loaded[get_rank()] if get_rank() < len(self._loaded) else {}
        for name, parameter in unwrap(model).named_parameters():
            if name in own and parameter.requires_grad:
                parameter.grad = own[name].to(parameter)
        self._loaded = []

    def gather(self, optim_wrapper: OptimWrapper, model: nn.Module) -> None:
        """Take note of all processes' before an iteration's checkpoint, which the first one saves."""
        waiting = pending(optim_wrapper, model)
        self._gathered = all_gather_object(waiting) if waiting and is_distributed() else []

    def save(self, optim_wrapper: OptimWrapper, model: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Add them to a checkpoint, this process's as they are now."""
        waiting = pending(optim_wrapper, model)
        if waiting:
            checkpoint[KEY] = [waiting, *self._gathered[1:]]


def pending(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a model, wrapped or not, that wait for their step; empty right after one."""
    if optim_wrapper.should_update():
        return {}
    return {name: parameter.grad.detach().cpu().clone() for name, parameter in unwrap(model).named_parameters()
            if parameter.grad is not None}
