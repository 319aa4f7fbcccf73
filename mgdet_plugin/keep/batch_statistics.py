"""Running statistics of batch normalisation, estimated anew for weights that were not trained (blended ones).

Statistics belong to the weights before them: those of a mean of two models are not the mean of the two models'
statistics. The estimate is that of stochastic weight averaging (arXiv 1803.05407, section 3.2) and of
``torch.optim.swa_utils.update_bn``.
"""
from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.staged.sample_index import kept_randomness


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Any], limit: int | None = None,
                        layers: Collection[str] | None = None) -> int:
    """Set running mean and variance of batch normalisation to their averages over batches; nothing else changes.

    Every batch counts alike. All other layers are in evaluation mode, no gradient is kept, and the CPU's generators of
    random numbers are afterwards where they were. ``num_batches_tracked`` becomes the number of batches.

    Args:
        model: A detector of mmdet, not wrapped.
        batches: What its data preprocessor takes, for instance a dataloader. The same weights are normalised by the
            batch while they are measured, so batches should be as large as in training.
        limit: Batches to use at most.
        layers: Names of the layers to estimate; the others compute with the statistics they have. Default: all that
            have running statistics.

    Returns:
        The number of batches.

    Raises:
        UserError: There are no batches, or ``layers`` names something else; the model is as it was.
    """
    norms = norm_layers(model)
    unknown = sorted(set(layers or ()) - set(norms))
    if unknown:
        raise UserError(f"the {type(model).__name__} has no batch normalisation '{unknown[0]}' with running statistics")
    chosen = [norm for name, norm in norms.items() if layers is None or name in layers]
    count = 0
    with kept_randomness(), _estimating(model, chosen):
        for batch in islice(batches, limit):
            data = model.data_preprocessor(batch, False)  # type: ignore[operator]
            model(**data, mode='tensor')
            count += 1
        if not count:
            raise UserError('there are no batches to estimate statistics from; give images of the training set')
    return count


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> batch normalisation that keeps running statistics."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None}


@contextmanager
def _estimating(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Within it, forward passes average the statistics; modes and momenta are put back, on failure statistics too."""
    modes = {module: module.training for module in model.modules()}
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    try:
        for module in modes:
            module.training = False  # not train(False): a detector's own train() may do more
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # type: ignore[assignment]  # None: a cumulative average
        yield
    except BaseException:
        for norm, _, state in before:
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
