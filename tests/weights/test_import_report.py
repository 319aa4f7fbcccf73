"""Statistics of tensors, and the warnings drawn from them."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from mgdet_plugin.weights.import_report import find_warnings, tensor_statistics


def trained() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {'a.conv.weight': torch.randn(4, 3, 3, 3, generator=generator),
            'a.bn.weight': torch.rand(4, generator=generator) + 0.5, 'a.bn.bias': torch.rand(4, generator=generator),
            'a.bn.running_mean': torch.rand(4, generator=generator),
            'a.bn.running_var': torch.rand(4, generator=generator) + 0.5,
            'a.bn.num_batches_tracked': torch.tensor(0)}


def test_mean_spread_and_share_of_zeros():
    values = torch.tensor([[0., 1., 2., 0.], [3., 0., -1., 5.]])
    got = tensor_statistics(values)
    assert got == dict(mean=1.25, std=pytest.approx(np.std(values.numpy())), zeros=0.375)
    assert tensor_statistics(torch.tensor([2.])) == dict(mean=2., std=0., zeros=0.)


def test_trained_tensors_give_no_warning():
    assert find_warnings(trained()) == []


def test_an_untrained_network_is_named():
    state = trained()
    state.update({'a.bn.weight': torch.ones(4), 'a.bn.bias': torch.zeros(4), 'a.bn.running_mean': torch.zeros(4),
                  'a.bn.running_var': torch.ones(4)})
    assert 'all 1 batch normalisations hold the values Keras starts with' in find_warnings(state)[0]
    state['a.bn.bias'][2] = 0.1
    assert find_warnings(state) == []


@pytest.mark.parametrize('key, value, cause', [
    ('a.bn.running_var', 1e-8, '4 of 4 variances are below 1e-06 (the smallest 1e-08)'),
    ('a.conv.weight', 0., 'all 108 numbers of the kernel are zero'),
    ('a.conv.weight', 3e5, 'values up to 3e+05'),
])
def test_what_a_person_should_look_at(key, value, cause):
    state = trained()
    state[key].fill_(value)
    assert [key in line and cause in line for line in find_warnings(state)] == [True]
