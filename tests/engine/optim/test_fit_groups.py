"""The optimizer of a checkpoint to resume from: its numbers must fit, and what the config says of it holds."""
from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import MultiStepLR, OptimWrapper

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.optim.staged_optim_wrapper_constructor import fit_groups

MOMENTS = dict(step=torch.tensor(3.), exp_avg=torch.ones(2, 3), exp_avg_sq=torch.ones(2, 3))


@pytest.fixture
def runner():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    wrapper = OptimWrapper(torch.optim.AdamW([dict(params=[weight], weight_decay=5e-4)], lr=1e-3))
    return SimpleNamespace(optim_wrapper=wrapper, param_schedulers=[], logger=logging.getLogger('fit_groups'))


def saved(runner, state=None, **settings):
    group = {**runner.optim_wrapper.optimizer.state_dict()['param_groups'][0], **settings}
    return dict(optimizer=dict(state=state or {}, param_groups=[group]))


def test_what_was_saved_passes_without_a_word(runner, caplog):
    fit_groups(runner, saved(runner, {0: MOMENTS}, lr=5.0))
    assert not caplog.records


def test_the_settings_of_the_config_hold_and_that_is_said(runner, caplog):
    checkpoint = saved(runner, weight_decay=1e5, betas=[0.9, 0.999])
    fit_groups(runner, checkpoint)
    assert checkpoint['optimizer']['param_groups'][0]['weight_decay'] == 5e-4
    assert [each.message for each in caplog.records] == [
        "the config's settings of the optimizer are taken: weight_decay 100000.0 in the checkpoint, 0.0005 in the "
        'config']


def test_moments_of_another_shape_are_refused(runner):
    with pytest.raises(UserError, match=r'exp_avg of the shape \(3, 2\) for a parameter of \(2, 3\)'):
        fit_groups(runner, saved(runner, {0: dict(MOMENTS, exp_avg=torch.ones(3, 2))}))


@pytest.mark.parametrize('gone', MOMENTS)
def test_moments_that_are_not_there_are_refused(runner, gone):
    """torch asks for them by name, at once or in the first step."""
    for state in ({name: value for name, value in MOMENTS.items() if name != gone}, {**MOMENTS, gone: None}):
        with pytest.raises(UserError, match=f"the checkpoint's optimizer has no {gone} for one of its parameters"):
            fit_groups(runner, saved(runner, {0: state}))


def test_settings_that_are_not_there_are_the_configs(runner):
    checkpoint = saved(runner)
    checkpoint['optimizer']['param_groups'] = [dict(params=[0], lr=1e-3)]
    fit_groups(runner, checkpoint)
    runner.optim_wrapper.load_state_dict(checkpoint['optimizer'])
    assert runner.optim_wrapper.optimizer.param_groups[0]['betas'] == (0.9, 0.999)


def test_a_scheduler_takes_what_it_has_and_no_more():
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    scheduler = MultiStepLR(wrapper, milestones=[1, 3])
    scheduler.load_state_dict({**scheduler.state_dict(), 'last_step': 2, 'step': 5, 'unknown': 1})
    assert scheduler.last_step == 2 and callable(scheduler.step) and not hasattr(scheduler, 'unknown')
    with pytest.raises(UserError, match=r"param_schedulers: base_values is 'x', expected a list"):
        scheduler.load_state_dict(dict(base_values='x'))
