"""Channels innermost in memory: another layout, the same network."""
import logging
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS
from torch import nn

from mgdet_plugin.engine import ChannelsLastHook
from mgdet_plugin.engine.hooks import channels_last_hook
from mgdet_plugin.engine.hooks.channels_last_hook import lay_out_mixed_precision


def test_kernels_are_laid_out_anew_and_compute_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.Conv2d(8, 5, 3))
    images = torch.rand(2, 3, 12, 12)
    before, weights = model.eval()(images), {name: value.clone() for name, value in model.state_dict().items()}
    assert not model[3].weight.is_contiguous(memory_format=torch.channels_last)
    HOOKS.build(dict(type='ChannelsLastHook')).before_train(
        SimpleNamespace(model=model, logger=logging.getLogger()))
    assert isinstance(HOOKS.build(dict(type='ChannelsLastHook')), ChannelsLastHook)
    assert model[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(images), before)


@pytest.mark.parametrize('wrapper', ['AmpOptimWrapper', 'OptimWrapper'])
@pytest.mark.parametrize('has_units', [True, False])
def test_mixed_precision_without_units_for_it_is_said(wrapper, has_units, monkeypatch, caplog):
    monkeypatch.setattr(channels_last_hook, 'has_accelerator', lambda: False)
    monkeypatch.setattr(channels_last_hook, 'has_bfloat16', lambda _: has_units)
    hooks = []
    runner = SimpleNamespace(optim_wrapper=dict(type=wrapper), logger=logging.getLogger(), hooks=hooks,
                             register_hook=hooks.append)
    for _ in range(2):
        lay_out_mixed_precision(runner)
    mixed = wrapper == 'AmpOptimWrapper'
    assert list(map(type, hooks)) == [ChannelsLastHook] * mixed
    assert ('without units for bfloat16' in caplog.text) is (mixed and not has_units)
