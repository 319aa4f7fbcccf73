"""Stages as data, and freezing that is true."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.engine.freezing import freeze, is_frozen
from mgdet_plugin.engine.plan import Stage, build_plan, stage_at
from mgdet_plugin.errors import UserError
from tests.conftest import ROOT

HEAD = dict(name='head', epochs=5, freeze_level=2, lr=1e-4)
NECK = dict(name='neck', epochs=2, freeze_level=1, lr=5e-5)


@pytest.fixture
def nano():
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py').model)


def test_stage_at():
    plan = build_plan([HEAD, NECK])
    assert [stage_at(plan, epoch)[0] for epoch in (0, 4, 5, 6, 7, 100)] == [0, 0, 1, 1, 1, 1]
    assert stage_at(plan, 5)[1] == Stage('neck', 2, 1, 5e-5)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(freeze_level=3), 'freeze_level must be one of'), (dict(epochs=0), 'got 0 and'), (dict(lr=0), 'lr positive'),
    (dict(epochs=2.5), '2.5'), (dict(colour='red'), 'colour'), (dict(mosaic_prob=0.3), 'no mosaic')])
def test_bad_stages(change, message):
    with pytest.raises(UserError, match=message):
        build_plan([{**HEAD, **change}])


def test_no_stages():
    with pytest.raises(UserError, match='at least one'):
        build_plan([])
    with pytest.raises(UserError, match="'lr'"):
        build_plan([dict(name='head', epochs=5, freeze_level=2)])


def test_names_match_whole_parts():
    assert is_frozen('bbox_head.bridges.0.conv.weight', ('bbox_head.bridges', ))
    assert not is_frozen('backbone_extra.weight', ('backbone', ))


@pytest.mark.parametrize(('level', 'trained'), [
    (0, {'backbone', 'neck', 'bbox_head'}), (1, {'neck', 'bbox_head'}), (2, {'bbox_head'})])
def test_levels(nano, level, trained):
    norms = freeze(nano, level)
    names = [name for name, parameter in nano.named_parameters() if parameter.requires_grad]
    assert {name.split('.')[0] for name in names} == trained
    if level == 2:
        assert len(names) == 6 and all('predict_convs' in name for name in names)
    assert len(norms) == {0: 0, 1: 52, 2: 66}[level]


def test_thaws_again(nano):
    freeze(nano, 2)
    freeze(nano, 0)
    assert all(parameter.requires_grad for parameter in nano.parameters())


def test_frozen_means_bit_equal_after_a_step(nano):
    nano.init_weights()
    optimizer = torch.optim.Adam(nano.parameters(), lr=1e-2)
    nano.train()
    norms = freeze(nano, 1)
    assert not any(norm.training for norm in norms)
    before = copy.deepcopy(nano.state_dict())
    maps = nano.bbox_head(nano.extract_feat(torch.rand(2, 3, 64, 64)))
    sum(level.square().sum() for level in maps).backward()
    optimizer.step()
    changed = {key for key, value in nano.state_dict().items() if not torch.equal(value, before[key])}
    assert not any(key.startswith('backbone') for key in changed)
    assert {key.split('.')[0] for key in changed} == {'neck', 'bbox_head'}
    assert any(key.endswith('running_mean') for key in changed)  # what is not frozen still learns its statistics


def test_model_without_the_parts():
    with pytest.raises(UserError, match="freezes 'backbone', but the Linear"):
        freeze(torch.nn.Linear(2, 2), 1)
