"""The rate of every group: a function of the plan and the iteration, held to the limit."""
import pytest
import torch
from mmengine.optim import OptimWrapper

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.optim.staged_lr_scheduler import StagedLR
from mgdet_plugin.plan.plan import Plan, build_plan

STAGES = [dict(name='a', epochs=4, freeze_level=1, lr=1e-4, warmup_epochs=2, schedule='constant'),
          dict(name='b', epochs=4, freeze_level=0, lr=4e-5, warmup_epochs=0, eta_min_ratio=0.1,
               lr_mult={'backbone': 0.5})]


def make(scale=1.0, stages=STAGES, limit=None, accumulated=1):
    """Two groups, the second with half the rate in stage b and a tenth always; `scale` as auto_scale_lr does it."""
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=1e-4, planned_lr=1e-4, lr_mult=1.0,
                   stage_mults=[1.0, 1.0], name='head'),
              dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=1e-5, planned_lr=1e-5, lr_mult=0.1,
                   stage_mults=[1.0, 0.5], name='backbone')]
    wrapper = OptimWrapper(torch.optim.Adam(groups, lr=1e-4))
    for group in wrapper.optimizer.param_groups:
        group['lr'] *= scale
    scheduler = StagedLR(wrapper)
    scheduler.follow(Plan(build_plan(stages)), limit, accumulated)
    return scheduler


def rates(scheduler):
    return [group['lr'] for group in scheduler.optimizer.optimizer.param_groups]


def test_rates_by_hand():
    """Ten iterations an epoch: warmup over 20 iterations, then constant; stage b a cosine over 40."""
    scheduler = make()
    scheduler.enter(0, 0, 10, 0)
    seen = []
    for _ in range(40):
        seen.append(rates(scheduler))
        scheduler.step()
    assert seen[0] == pytest.approx([1e-6, 1e-7]) and seen[10] == pytest.approx([5.05e-5, 5.05e-6])
    assert seen[20] == seen[39] == pytest.approx([1e-4, 1e-5])
    scheduler.enter(1, 40, 10, 40)
    assert rates(scheduler) == pytest.approx([4e-5, 2e-6])
    for _ in range(20):
        scheduler.step()
    assert rates(scheduler) == pytest.approx([4e-5 * 0.55, 2e-6 * 0.55])
    for _ in range(100):
        scheduler.step()
    assert rates(scheduler) == pytest.approx([4e-6, 2e-7])


def test_the_base_rate_of_the_log_follows():
    scheduler = make()
    scheduler.enter(0, 0, 10, 20)
    assert scheduler.optimizer.get_lr()['base_lr'] == pytest.approx([1e-4])


def test_scaled_by_the_batch_and_accumulation():
    scheduler = make(scale=0.25, accumulated=2)
    scheduler.enter(0, 0, 10, 20)
    assert rates(scheduler) == pytest.approx([5e-5, 5e-6])


def test_scaled_rates_are_held_to_the_limit():
    """auto_scale_lr at four times the batch: no group above 1e-4, boosted or not; multipliers keep their ratio."""
    scheduler = make(scale=4.0, limit=1e-4)
    scheduler.enter(0, 0, 10, 20)
    assert rates(scheduler) == pytest.approx([1e-4, 1e-5])
    boosted = make(scale=4.0, limit=1e-4, stages=[dict(STAGES[0], boost=2.0, boost_epochs=1), STAGES[1]])
    boosted.enter(0, 0, 10, 25)
    assert rates(boosted) == pytest.approx([1e-4, 1e-5])


def test_state_is_where_it_stands():
    scheduler = make()
    scheduler.enter(0, 0, 10, 7)
    assert scheduler.state_dict() == dict(last_step=7)
    other = make()
    other.load_state_dict(dict(last_step=7, end=3, base_values=[1]))
    other.enter(0, 0, 10, other.last_step)
    assert rates(other) == rates(scheduler)


def test_refuses_groups_of_another_constructor():
    wrapper = OptimWrapper(torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-4))
    with pytest.raises(UserError, match="constructor='StagedOptimWrapperConstructor'"):
        StagedLR(wrapper)
    with pytest.raises(UserError, match='by_epoch must be False'):
        StagedLR(wrapper, by_epoch=True)
