"""One group for every combination of part, rule and multipliers, over all parameters."""
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine import StagedOptimWrapperConstructor
from mgdet_plugin.plan.plan import Plan, build_plan
from mgdet_plugin.plan.rates import depth_order, longest_match
from tests.conftest import ROOT

STAGES = [dict(name='head', epochs=1, freeze_level=2, lr=1e-4),
          dict(name='full', epochs=1, freeze_level=0, lr=3e-5, lr_mult={'backbone': 0.1, 'backbone.conv1': 0.01})]


@pytest.fixture(scope='module')
def nano():
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py').model)


def build(model, stages=STAGES, optimizer=None, **rules):
    cfg = dict(optimizer=dict(type='Adam', eps=1e-7, **(optimizer or {})))
    return StagedOptimWrapperConstructor(cfg, rules, Plan(build_plan(stages)) if stages else None)(model)


def groups(model, **kwargs):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group['name']: ([names[id(each)] for each in group['params']], group)
            for group in build(model, **kwargs).optimizer.param_groups}


def test_groups_by_part_and_multiplier(nano):
    found = groups(nano)
    assert set(found) == {'backbone', 'backbone_2', 'neck', 'bbox_head'}
    assert all(name.startswith('backbone.conv1.') for name in found['backbone'][0])
    assert {name: group['stage_mults'] for name, (_, group) in found.items()} == {
        'backbone': [1.0, 0.01], 'backbone_2': [1.0, 0.1], 'neck': [1.0, 1.0], 'bbox_head': [1.0, 1.0]}
    assert all(group['lr'] == 1e-4 and group['weight_decay'] == 0 for _, group in found.values())


def test_every_parameter_is_in_one_group_frozen_or_not(nano):
    """mmengine's constructor drops what is frozen when it runs; then it never trains again."""
    nano.backbone.requires_grad_(False)
    try:
        held = [id(each) for group in build(nano).optimizer.param_groups for each in group['params']]
    finally:
        nano.requires_grad_(True)
    assert sorted(held) == sorted(id(each) for each in nano.parameters())


def test_rules_multiply(nano):
    """Decay rules of norms and biases, and keys with multipliers: none switches another one off."""
    found = groups(nano, stages=None, optimizer=dict(lr=1e-3, weight_decay=0.1), norm_decay_mult=0.0,
                   bias_lr_mult=2.0, bias_decay_mult=0.5, custom_keys={'neck': dict(lr_mult=0.1, decay_mult=0.5)})
    by_name = {name: group for names, group in found.values() for name in names}
    for name, rate, decay in (('neck.blocks.0.conv1.conv.weight', 1e-4, 0.05),
                              ('neck.blocks.0.conv1.bn.weight', 1e-4, 0.0),
                              ('neck.blocks.0.conv1.bn.bias', 1e-4, 0.0),
                              ('bbox_head.predict_convs.0.bias', 2e-3, 0.05),
                              ('bbox_head.predict_convs.0.weight', 1e-3, 0.1),
                              ('backbone.conv1.bn.weight', 1e-3, 0.0)):
        assert by_name[name]['lr'] == pytest.approx(rate), name
        assert by_name[name]['weight_decay'] == pytest.approx(decay), name


def test_layer_decay_follows_the_depth_of_darknet(nano):
    assert depth_order(nano) == ['conv1', *(f'conv_res_block{i}' for i in range(1, 6))]
    found = groups(nano, stages=STAGES[:1], layer_decay=0.5)
    mults = {name: group['lr_mult'] for name, (_, group) in found.items()}
    assert mults == {'backbone.conv1': 0.5**6, **{f'backbone.conv_res_block{i}': 0.5**(6 - i) for i in range(1, 6)},
                     'neck': 1.0, 'bbox_head': 1.0}


def test_longest_match():
    assert longest_match('backbone.conv1.bn.weight', ['backbone', '*.bn', 'backbone.conv1', 'neck']) == 'backbone.conv1'
    assert longest_match('head.weight', ['neck']) is None


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(optimizer=dict(lr=1e-3)), "optimizer.lr is 0.001, the plan's first stage has lr 0.0001: rates come from"),
    (dict(stages=None), 'has no lr and there is no plan'), (dict(layer_decay=2), 'layer_decay must be above 0'),
    (dict(norm_mult=1), r"no option \['norm_mult'\]"),
    (dict(custom_keys={'nek': dict(lr_mult=1)}), "custom_keys names 'nek'")])
def test_refuses(nano, kwargs, message):
    with pytest.raises(UserError, match=message):
        build(nano, **kwargs)


def test_the_plan_s_own_rate_may_be_said_twice(nano):
    assert build(nano, optimizer=dict(lr=1e-4)).optimizer.param_groups[0]['lr'] == 1e-4


def test_shared_parameters_are_held_once():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert sum(len(group['params']) for group in build(model, stages=None, optimizer=dict(lr=1)).param_groups
               if 'name' in group) == 3
