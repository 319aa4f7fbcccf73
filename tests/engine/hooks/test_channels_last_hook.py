"""Channels innermost in memory: another layout, the same network."""
import logging
from types import SimpleNamespace

import torch
from mmdet.registry import HOOKS
from torch import nn

from mgdet_plugin.engine import ChannelsLastHook


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
