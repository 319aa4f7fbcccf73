"""Statistics of imported tensors, and what they give away about a file."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

NEAR_ZERO_VARIANCE = 1e-6  # a thousandth of the epsilon beside it: the channel never changed in training
HUGE = 1e4                 # far above trained weights, far below what another byte order makes of them
INITIAL = dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0)


def tensor_statistics(tensor: Tensor) -> dict[str, float]:
    """Mean, standard deviation (of the population) and share of zeros of a float tensor of any shape."""
    mean = tensor.mean(dtype=torch.float64)
    spread = tensor.std(correction=0) if tensor.numel() > 1 else torch.zeros(())
    zeros = 1 - int(tensor.count_nonzero()) / tensor.numel()
    return dict(mean=float(mean), std=float(spread), zeros=zeros)


def find_warnings(state: Mapping[str, Tensor]) -> list[str]:
    """What a person should look at before training from these tensors.

    Args:
        state: Float tensors by key of the network's state dict; batch normalisations end in ``.bn.<name>``.

    Returns:
        One line each: normalisations at their initial values, variances near zero, kernels of zeros alone, huge
        values. Empty for what training leaves behind.
    """
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    norms = {key: tensor for key, tensor in floats.items() if '.bn.' in key}
    untouched = [key for key, tensor in norms.items() if bool((tensor == INITIAL[key.rpartition('.')[2]]).all())]
    warnings = []
    if norms and len(untouched) == len(norms):
        warnings.append(f'all {len(norms) // len(INITIAL)} batch normalisations hold the values Keras starts with: the '
                        'file seems to hold an untrained network; save it after training or after loading weights')
    for key, tensor in norms.items():
        if key.endswith('.running_var') and (flat := int((tensor < NEAR_ZERO_VARIANCE).sum())):
            warnings.append(f'{key}: {flat} of {tensor.numel()} variances are below {NEAR_ZERO_VARIANCE:g} (the '
                            f'smallest {float(tensor.min()):.3g}): these channels were constant in training')
    warnings += [f'{key}: all {tensor.numel():,} numbers of the kernel are zero'
                 for key, tensor in floats.items() if tensor.dim() == 4 and not tensor.any()]
    warnings += [f'{key}: values up to {largest:.3g}, far above those of a trained network'
                 for key, tensor in floats.items() if (largest := float(tensor.abs().max())) > HUGE]
    return warnings
