"""Statistics estimated anew: as worked out by hand, with nothing else changed."""
from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.hooks.random_state_hook import random_state
from mgdet_plugin.keep.batch_statistics import estimate_statistics, norm_layers
from mgdet_plugin.keep.blending import blend_states
from tests.conftest import ROOT
from tests.support.keras_files import TINY_OPTIONS
from tests.support.staged_run import differences


class Toy(nn.Module):
    """Stands for a detector: two normalised convolutions with dropout between them."""

    def __init__(self):
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.1)
        self.drop = nn.Dropout(0.5)
        self.two, self.norm_two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3)

    def data_preprocessor(self, batch, training):
        assert not training
        return dict(inputs=batch)

    def forward(self, inputs, mode):
        assert mode == 'tensor' and not torch.is_grad_enabled()
        return self.norm_two(self.two(self.drop(self.norm_one(self.one(inputs)))))


@pytest.fixture
def toy():
    torch.manual_seed(0)
    model = Toy()
    for norm in (model.norm_one, model.norm_two):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        norm.num_batches_tracked.fill_(77)
    return model.train(), [3 * torch.randn(4, 2, 5, 5) + index for index in range(3)]


def channels(maps):
    """(C, all else), in float64."""
    return maps.double().transpose(0, 1).flatten(1)


def by_hand(maps):
    """Means over batches of their means and of their unbiased variances."""
    return [sum(each) / len(maps) for each in zip(*[(channels(one).mean(1), channels(one).var(1)) for one in maps])]


@torch.no_grad()
def test_equal_to_those_by_hand(toy):
    model, batches = toy
    assert estimate_statistics(model, batches) == 3
    first = [model.one(batch) for batch in batches]
    scale = [(channels(one).mean(1), channels(one).var(1, unbiased=False)) for one in first]
    second = [model.two(((one - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()).float())
              for one, (mean, var) in zip(first, scale)]
    for norm, maps in ((model.norm_one, first), (model.norm_two, second)):
        mean, var = by_hand(maps)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-5)
        assert norm.num_batches_tracked == 3


@torch.no_grad()
def test_named_layers_alone(toy):
    """The other layer keeps its statistics and computes with them."""
    model, batches = toy
    before = copy.deepcopy(model.state_dict())
    estimate_statistics(model, batches, layers=['norm_two'])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f'norm_two.{key}' for key in ('running_mean', 'running_var', 'num_batches_tracked')}
    norm = copy.deepcopy(model.norm_one).eval()
    mean, _ = by_hand([model.two(norm(model.one(batch))) for batch in batches])
    torch.testing.assert_close(model.norm_two.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="no batch normalisation 'neck'"):
        estimate_statistics(model, batches, layers=['neck'])


def test_nothing_else_changes(toy):
    """Weights, modes, momenta, gradients and generators of random numbers; workers' seeds are drawn from the latter."""
    model, _ = toy
    model.norm_one.eval()
    model.drop.eval()
    modes = [module.training for module in model.modules()]
    parameters = copy.deepcopy(dict(model.named_parameters()))
    loader = torch.utils.data.DataLoader(RandomSet(), batch_size=4, shuffle=True)
    before = random_state()
    estimate_statistics(model, loader)
    assert differences(random_state(), before) == []
    assert [module.training for module in model.modules()] == modes
    assert (model.norm_one.momentum, model.norm_two.momentum) == (0.1, 0.3)
    assert all(torch.equal(each, parameters[name]) and each.grad is None for name, each in model.named_parameters())
    next(iter(loader))
    assert differences(random_state(), before)


class RandomSet(torch.utils.data.Dataset):
    """Draws from every generator."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.randn(2, 5, 5) + random.random() + np.random.rand()


def test_limit_counts_batches(toy):
    model, batches = toy
    other = copy.deepcopy(model)
    assert estimate_statistics(model, iter(batches), limit=2) == 2
    estimate_statistics(other, batches[:2])
    assert differences(dict(model.state_dict()), dict(other.state_dict())) == []


@pytest.mark.parametrize('batches, limit, error', [([], None, UserError), ([torch.zeros(2, 2, 5, 5)], 0, UserError),
                                                   ([torch.zeros(2, 2, 5, 5), torch.zeros(2, 9, 5, 5)], None,
                                                    RuntimeError)])
def test_a_failure_leaves_the_model_as_it_was(toy, batches, limit, error):
    model, _ = toy
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error):
        estimate_statistics(model, batches, limit)
    assert differences(dict(model.state_dict()), dict(before)) == []
    assert model.norm_one.momentum == 0.1 and all(module.training for module in model.modules())


@torch.no_grad()
def test_a_blend_needs_it(toy):
    """Weights of opposite sign: halfway between outputs shrink to a tenth, and the mean of the variances does not."""
    one, batches = toy
    estimate_statistics(one, batches)
    other = copy.deepcopy(one)
    other.one.weight.mul_(-0.8)
    other.one.bias.mul_(-0.8)
    estimate_statistics(other, batches)
    blend = copy.deepcopy(one)
    blend.load_state_dict(blend_states(one.state_dict(), other.state_dict(), 0.5))
    _, true = by_hand([blend.one(batch) for batch in batches])
    assert (blend.norm_one.running_var.double() / true).min() > 50
    estimate_statistics(blend, batches)
    torch.testing.assert_close(blend.norm_one.running_var.double(), true, rtol=1e-4, atol=1e-6)


def test_a_detector_of_mmdet():
    """Every normalisation of the tiny model: averages over what came into it."""
    cfg = Config.fromfile(ROOT / 'configs/mgdet_model5_stage1.py')
    cfg.merge_from_dict(TINY_OPTIONS)
    cfg.model.bbox_head.loss.class_weights = None
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    batches = [dict(inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in range(size)],
                    data_samples=None) for size in (4, 3)]
    seen = {name: [] for name in norm_layers(model)}
    for name, norm in norm_layers(model).items():
        norm.register_forward_pre_hook(lambda module, given, name=name: seen[name].append(given[0].clone()))
    estimate_statistics(model, batches)
    assert len(seen) == 66 and not any(module.training for module in model.modules())
    for name, norm in norm_layers(model).items():
        mean, var = by_hand(seen[name])
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-5)
