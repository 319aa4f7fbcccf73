"""Running statistics of batch normalisation, estimated anew for weights that were not trained (blended ones).

Statistics belong to the weights before them: those of a mean of two models are not the mean of the two models'
statistics. The estimate is that of stochastic weight averaging (arXiv 1803.05407, section 3.2).
"""
from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.staged.sample_index import kept_randomness


def estimate_statistics(model: nn.Module, batches: Iterable[Any], limit: int | None = None,
                        layers: Collection[str] | None = None) -> int:
    """Set running mean and variance of batch normalisation to their averages over batches; nothing else changes.

    Every batch counts alike. All other layers are in evaluation mode, no gradient is kept, and the CPU's generators of
    random numbers are afterwards where they were. ``num_batches_tracked`` becomes the number of batches, as returned.

    Args:
        model: A detector of mmdet, not wrapped.
        batches: What its data preprocessor takes, for instance a dataloader. The same weights are normalised by the
            batch while they are measured, so batches should be as large as in training.
        limit: Batches to use at most.
        layers: Names of the layers to estimate, by default all that have running statistics; the others use theirs.

    Raises:
        UserError: There are no batches, or ``layers`` names something else; the model is as it was.
    """
    norms = norm_layers(model)
    unknown = sorted(set(layers or ()) - set(norms))
    if unknown:
        raise UserError(f"the {type(model).__name__} has no batch normalisation '{unknown[0]}' with running statistics")
    chosen = [name for name in norms if layers is None or name in layers]
    trial = copy.deepcopy(model).eval()  # a failure leaves the model as it was
    estimated = nn.ModuleList(trial.get_submodule(name) for name in chosen)  # all that update_bn resets and trains
    estimated.forward = lambda data: trial(**data, mode='tensor')  # type: ignore[assignment]
    count = 0

    def inputs() -> Iterator[Any]:
        nonlocal count
        for batch in islice(batches, limit):
            yield trial.data_preprocessor(batch, False)  # type: ignore[operator]
            count += 1

    with kept_randomness():
        update_bn(inputs(), estimated)
    if chosen and not count:
        raise UserError('there are no batches to estimate statistics from; give images of the training set')
    for name, norm in zip(chosen, estimated):
        norms[name].load_state_dict(norm.state_dict())
    return count


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> batch normalisation that keeps running statistics."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None}
