"""Gradient accumulation that never reaches over the end of an epoch, so never over an edge."""
from __future__ import annotations

from collections.abc import Mapping

from mmengine.optim import OptimWrapper
from torch import Tensor, nn


def start_counting(optim_wrapper: OptimWrapper, done: int, steps: int) -> None:
    """Count iterations from the start of an epoch; its last, shorter group of iterations steps with its own mean.

    mmengine counts over the whole run and lets a group of iterations reach over an edge
    (``OptimWrapper.initialize_count_status``, which also warns anew at each call).

    Args:
        optim_wrapper: The wrapper.
        done: Iterations of this epoch that are done.
        steps: Iterations of this epoch.
    """
    optim_wrapper._inner_count = done
    optim_wrapper._max_counts = steps
    optim_wrapper._remainder_counts = steps % optim_wrapper._accumulative_counts


def pending_gradients(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
    """Gradients that wait for their step; empty right after one.

    Args:
        optim_wrapper: The wrapper.
        model: The model, not wrapped.
    """
    if optim_wrapper.should_update():
        return {}
    return {name: parameter.grad.detach().cpu().clone() for name, parameter in model.named_parameters()
            if parameter.grad is not None}


def restore_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Put gradients of :func:`pending_gradients` back."""
    for name, parameter in model.named_parameters():
        if name in gradients and parameter.requires_grad:
            parameter.grad = gradients[name].to(parameter)
