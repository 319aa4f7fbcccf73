"""A guarded run that was stopped anywhere and resumed sees, counts and does what the run that was not did."""
import pytest

from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.progress import Progress
from tests.support.guarded_run import EMA, guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import HEAD, NECK, SnapshotHook, differences, newest, run, state_of

FAULTS = {'1': 'loss', '2': 'nan image', '3': 'label', '8': 'loss'}
STAGES = [dict(HEAD, epochs=1, warmup_epochs=0), dict(NECK, epochs=6)]
MOMENTS = [
    ('iter', 3),  # two of three bad steps in a row are done
    ('iter', 9),  # a group's first iteration was bad
    ('iter', 11),  # two iterations after the last checkpoint
    ('epoch', 3),  # ruined, not validated yet
    ('val', 3),  # held, lowered and gone back, and one miss of two
    ('epoch', 4),
]
STOPPING = dict(metric='table/value', patience=2, min_epochs=1)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data):
    """Config, folder and what it leaves where it is killed, of the uninterrupted run: bad steps that go back to the
    start, a group of iterations that makes no step, a drift with every action but stopping, and its end by early
    stopping."""
    folder = tmp_path_factory.mktemp('whole')
    cfg = guarded_config(
        folder, data, STAGES,
        dict(nan_patience=3, drift=['hold', 'lower_rate', 'rollback'], images=1, window=3, interval=2),
        **{'train_dataloader.batch_size': 2, 'optim_wrapper.accumulative_counts': 2})
    cfg.plan.early_stopping = STOPPING
    cfg.val_evaluator = dict(type='TableMetric', values=(0.5, 0.6, 0.5, 0.6))
    cfg.custom_hooks = [EMA, dict(type='FaultHook', faults=FAULTS), dict(type='RuinHook', epochs={'3': 30.0}),
                        dict(type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=-1)]
    stopped = SnapshotHook(folder, MOMENTS)
    runner = run(cfg, folder / 'run', hooks=[stopped])
    assert (runner.epoch, runner.iter) == (4, 16)
    return cfg, folder / 'run', stopped


def test_the_uninterrupted_run(whole):
    record = guard_json(whole[1])
    assert record['ended'] == 'early_stopping' and record['bad_steps'] == 4
    assert [(event['kind'], event['where'], event['iter'], event['actions']) for event in record['events']] == [
        ('nan', 'training', 2, ['skip']), ('nan', 'training', 3, ['skip']),
        ('nan', 'training', 4, ['lower_rate', 'rollback']), ('nan', 'training', 9, ['skip']),
        ('drift', 'validation', 12, ['hold', 'lower_rate', 'rollback'])]
    saved = newest(whole[1])  # written anew after the validation that ended the run
    kept = saved['guard']['record']
    assert (kept['rollbacks'], kept['good'], kept['bad_steps']) == (2, [4, 16], 4)
    assert (saved['mgdet']['misses'], saved['mgdet']['held'], saved['mgdet']['damping']) == (2, 1, 0.25)
    assert saved['guard']['watch']['sums'] and saved['guard']['watch']['reference']
    assert {'pretrained', 'random', 'subset'} <= {key for key, value in kept.items() if value}


@pytest.mark.parametrize('kill', MOMENTS)
def test_resumed_equals_uninterrupted(whole, tmp_path, kill):
    cfg, folder, stopped = whole
    runner = run(cfg, stopped.copy(*kill, tmp_path / 'run'), resume=True)
    assert (runner.epoch, runner.iter) == (4, 16)
    one, other = state_of(newest(tmp_path / 'run')), state_of(newest(folder))
    assert 'guard' in one and differences(one, other) == []
    assert differences(guard_json(tmp_path / 'run'), guard_json(folder)) == []


# ---- early stopping

def plan_of(data, folder, **plan):
    cfg = guarded_config(folder, data, STAGES)
    cfg.plan.update(plan)
    return Plan.from_cfg(cfg), cfg


def validations_until_the_end(plan, losses):
    """How many validations the last stage goes on for."""
    progress = Progress(stage=1, first_epoch=1)
    for count, loss in enumerate(losses, 1):
        progress.after_validation(plan, 1 + count, {'val/loss': loss})
        if progress.ended:
            return count
    return None


def test_by_default_ten_validations_without_a_lower_loss(data, tmp_path):
    plan, cfg = plan_of(data, tmp_path)
    assert plan.until(0) is None and (plan.until(1).metric, plan.until(1).patience) == ('val/loss', 10)
    assert validations_until_the_end(plan, [5.0, 4.0, *[4.0] * 20]) == 12
    assert validations_until_the_end(plan, [5.0, *[6.0] * 9, 4.9, *[float('nan')] * 20]) == 21
    cfg.val_cfg = dict(type='ValLoop')  # which measures no loss
    assert Plan.from_cfg(cfg).until(1) is None


def test_it_can_be_switched_off(data, tmp_path):
    plan, _ = plan_of(data, tmp_path, early_stopping=None)
    assert plan.until(1) is None and validations_until_the_end(plan, [5.0] * 30) is None


def test_what_is_given_takes_the_place_of_the_default(data, tmp_path):
    plan, cfg = plan_of(data, tmp_path, early_stopping=dict(patience=2))
    assert validations_until_the_end(plan, [5.0, *[6.0] * 20]) == 3
    cfg.stages[1]['until'] = dict(metric='val/loss', patience=4)
    assert validations_until_the_end(Plan.from_cfg(cfg), [5.0, *[6.0] * 20]) == 5  # the stage's own goes first
