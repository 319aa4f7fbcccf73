"""Guarded runs: baselines, bands and what is done when a run leaves them."""
import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.guard.drift_guard_hook import DriftGuardHook
from mgdet_plugin.keep.start_weights import START
from tests.support.guarded_run import EMA, FaultHook, Recorder, RuinHook, events, guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, differences, newest, run, staged_config, state_of
from tests.support.validation_loss import validation_loss

FLAT = dict(HEAD, warmup_epochs=0, schedule='constant')
RUINED = 30.0  # a factor on the last layers that brings objectness and class loss far above their limit
BY_TWO = {'train_dataloader.batch_size': 2}  # four iterations an epoch


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def loaded(path):
    return torch.load(path, weights_only=True)


def run_with(cfg, work_dir, *hooks, **kwargs):
    recorder = Recorder()
    runner = run(cfg, work_dir, hooks=[*hooks, recorder], **kwargs)
    return runner, recorder


def stopped(cfg, work_dir, *hooks):
    """The one line of a run that the guard ends."""
    recorder = Recorder()
    with pytest.raises(UserError, match='the guard has stopped the run') as caught:
        run(cfg, work_dir, hooks=[*hooks, recorder])
    assert '\n' not in str(caught.value) and guard_json(work_dir)['ended'] == 'guard'
    return str(caught.value), recorder


# ---- it measures, and does not disturb

def test_baselines_and_an_undisturbed_run(data, tmp_path):
    """Bit-equal weights, averages, moments and random states with and without the guard, and what it measured."""
    stages = [dict(NECK, epochs=1), dict(FULL, epochs=1)]
    cfg = staged_config(tmp_path, data, stages, **BY_TWO)
    cfg.custom_hooks = [EMA, dict(type='FaultHook', faults={'1': 10.0, '5': 10.0})]  # it measures within epochs, too
    cfg.default_hooks.drift_guard.update(images=1, window=1, interval=1, limit=1e-6, divergence='warn')
    cfg.model.bbox_head.loss.update(object_scale=2.0, class_scale=0.5)
    cfg.plan.allow = ['loss-scales']
    run(cfg, tmp_path / 'guarded')
    run(cfg, tmp_path / 'bare', change=lambda cfg: cfg.default_hooks.pop('drift_guard'))
    one, other = state_of(newest(tmp_path / 'guarded')), state_of(newest(tmp_path / 'bare'))
    one.pop('guard', None)
    assert differences(one, other) == []

    record = guard_json(tmp_path / 'guarded')
    recipe = copy.deepcopy(cfg.model)
    recipe.bbox_head.loss.update(object_scale=1.0, class_scale=1.0)
    model = MODELS.build(recipe)
    start = loaded(tmp_path / 'guarded' / START)['state_dict']
    model.load_state_dict(start)
    batches = guarded_loader(cfg)
    measured = {f'val/{name}': value for name, value in validation_loss(model, batches).items()}
    pretrained, random = record['baseline']['pretrained'], record['baseline']['random']
    assert pretrained == pytest.approx({**measured, 'table/value': 0.1}, rel=1e-5)
    assert set(random) == set(pretrained) and all(
        math.isfinite(random[name]) and random[name] != pretrained[name] for name in measured)
    assert differences(model.state_dict(), start) == []
    assert record['guarded'] == ['loss_obj', 'loss_cls'] and record['metric'] == 'table/value'
    assert [(each['index'], each['name'], each['first_epoch'], each['first_iter']) for each in record['stages']] == [
        (0, 'neck', 0, 0), (1, 'full', 1, 4)]
    for epoch, validation in enumerate(record['validations'], 1):
        assert (validation['epoch'], validation['iter'], validation['stage']) == (
            epoch, 4 * epoch, stages[epoch - 1]['name'])
        assert validation['ratios'] == pytest.approx({
            name.removeprefix('val/'): value / pretrained[name] for name, value in validation['metrics'].items()
            if 'loss' in name})
        saved = loaded(tmp_path / 'guarded' / f'epoch_{epoch}.pth')
        model.load_state_dict(saved['state_dict'])  # averages, which are what is validated
        again = validation_loss(model, batches)
        assert validation['metrics'] == pytest.approx({**{f'val/{name}': value for name, value in again.items()},
                                                       'table/value': 0.1}, rel=1e-5)
    assert record['validations'][0]['weights']['backbone'] == 0.0 < record['validations'][1]['weights']['backbone']


def guarded_loader(cfg):
    """The validation set's batches."""
    return Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader), seed=0)


def test_baselines_are_inherited_where_the_validation_set_is_the_same(data, tmp_path):
    first = guarded_config(tmp_path, data, [dict(HEAD, epochs=1, lr=1e-4)])
    run(first, tmp_path / 'one', hooks=[RuinHook(epochs={1: 1.1})])
    second = guarded_config(tmp_path, data, [dict(NECK, epochs=1)])
    second.load_from = str(tmp_path / 'one' / 'epoch_1.pth')
    run(second, tmp_path / 'two')
    one, two = guard_json(tmp_path / 'one'), guard_json(tmp_path / 'two')
    assert two['baseline'] == one['baseline'] and two['validations'] != one['validations']
    second.val_dataloader.dataset.indices = 3
    run(second, tmp_path / 'three')
    three = guard_json(tmp_path / 'three')['baseline']
    model = MODELS.build(second.model)
    model.load_state_dict(loaded(tmp_path / 'one' / 'epoch_1.pth')['state_dict'])
    assert three['pretrained']['val/loss'] == pytest.approx(
        validation_loss(model, guarded_loader(second))['loss'], rel=1e-5)
    assert three['pretrained']['val/loss'] != one['baseline']['pretrained']['val/loss']


# ---- steps that are not finite

def test_three_bad_steps_in_a_row_go_back(data, tmp_path):
    """First to the start, later to the last good epoch: weights, statistics, averages and moments, bit for bit."""
    cfg = guarded_config(tmp_path, data, [dict(FULL, epochs=3, warmup_epochs=0, schedule='constant')],
                         custom_hooks=[EMA], **BY_TWO)
    faults = {**dict.fromkeys((1, 2, 3), 'loss'), **dict.fromkeys((9, 10, 11), 'gradient')}
    runner, recorder = run_with(cfg, tmp_path / 'run', FaultHook(faults))
    assert runner.epoch == 3
    start = loaded(tmp_path / 'run' / START)['state_dict']
    after = recorder.states[4]
    own = {**after['weights'], **after['buffers']}
    assert differences({key: own[key] for key in start}, start) == []
    assert after['optimizer'] == {}
    [average] = after['average']
    assert differences({key: average[f'module.{key}'] for key in start}, start) == [] and int(average['steps']) == 0
    assert differences(recorder.states[3]['weights'], after['weights']) != []

    good = loaded(tmp_path / 'run' / 'epoch_2.pth')  # saved as last_good.pth, too, which epoch 3 replaced
    after = recorder.states[12]
    own, [average] = {**after['weights'], **after['buffers']}, after['average']
    trained = {key: good['ema_state_dict'].get(f'module.{key}', value) for key, value in good['state_dict'].items()}
    assert differences({key: own[key] for key in trained}, trained) == []
    assert differences({key: average[f'module.{key}'] for key in trained}, good['state_dict']) == []
    assert int(average['steps']) == int(good['ema_state_dict']['steps'])
    assert differences(after['optimizer'], recorder.states[8]['optimizer']) == []
    assert differences(recorder.states[11]['optimizer'], after['optimizer']) != []
    done = [(iteration, actions) for _, _, iteration, actions in events(tmp_path / 'run')]
    assert done == [(2, ['skip']), (3, ['skip']), (4, ['lower_rate', 'rollback']), (10, ['skip']), (11, ['skip']),
                    (12, ['lower_rate', 'rollback'])]
    assert recorder.rates == pytest.approx([3e-5] * 4 + [1.5e-5] * 8)
    assert newest(tmp_path / 'run')['guard']['record']['rollbacks'] == 2
    assert newest(tmp_path / 'run')['mgdet']['damping'] == 0.25
    assert loaded(tmp_path / 'run' / 'last_good.pth')['meta']['epoch'] == 3


def test_back_over_an_edge(data, tmp_path):
    """To weights from before a stage that has frozen what was trained since: its proof is against those."""
    cfg = guarded_config(tmp_path, data, [dict(NECK, mosaic_prob=0, mixup_prob=0), dict(HEAD, epochs=1)], **BY_TWO)
    run(cfg, tmp_path / 'run', hooks=[RuinHook(epochs={2: RUINED}), FaultHook(dict.fromkeys((8, 9, 10), 'loss'))])
    assert [(kind, iteration, actions) for kind, _, iteration, actions in events(tmp_path / 'run')] == [
        ('drift', 8, ['warn']), ('nan', 9, ['skip']), ('nan', 10, ['skip']), ('nan', 11, ['lower_rate', 'rollback'])]
    first, second, last = (loaded(tmp_path / 'run' / f'epoch_{epoch}.pth')['state_dict'] for epoch in (1, 2, 3))
    neck = [key for key in first if key.startswith('neck.')]
    assert differences([first[key] for key in neck], [second[key] for key in neck]) != []
    assert differences([first[key] for key in neck], [last[key] for key in neck]) == []
    assert guard_json(tmp_path / 'run')['ended'] == 'plan'


def test_bad_steps_can_end_the_run(data, tmp_path):
    """In the middle of an epoch: no checkpoint of it, no validation."""
    cfg = guarded_config(tmp_path, data, [FLAT], dict(nan='stop', nan_patience=2), **BY_TWO)
    line, recorder = stopped(cfg, tmp_path / 'run', FaultHook({1: 'nan image', 2: 'nan image'}))
    assert 'nan in training, epoch 1, iteration 3' in line and 'those it started from' in line
    assert len(recorder.states) == 4 and not (tmp_path / 'run' / 'epoch_1.pth').exists()
    assert guard_json(tmp_path / 'run')['validations'] == []
    assert events(tmp_path / 'run')[-1] == ('nan', 'training', 3, ['stop'])


def test_good_steps_between_bad_ones_are_no_row(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1)], dict(nan='stop', nan_patience=2),
                         **{**BY_TWO, 'train_cfg.val_begin': 9})
    run(cfg, tmp_path / 'run', hooks=[FaultHook({0: 'loss', 2: 'loss'})])
    assert guard_json(tmp_path / 'run')['ended'] == 'plan' and guard_json(tmp_path / 'run')['bad_steps'] == 2


# ---- above the limit at a validation

def test_warn(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1)])
    run(cfg, tmp_path / 'run', hooks=[RuinHook(epochs={1: RUINED})])
    record = guard_json(tmp_path / 'run')
    [event] = record['events']
    assert events(tmp_path / 'run') == [('drift', 'validation', 2, ['warn'])] and record['ended'] == 'plan'
    ratios = record['validations'][0]['ratios']
    assert event['values'] == {name: ratios[name] for name in ('loss_obj', 'loss_cls')}
    assert max(event['values'].values()) > 1.2 and 'limit 1.20' in event['text']
    assert not (tmp_path / 'run' / 'last_good.pth').exists()


def test_hold(data, tmp_path):
    """Each stage is an epoch longer, not two, and its schedule stands still meanwhile."""
    plan = [dict(HEAD, warmup_epochs=0), dict(NECK, epochs=1)]
    cfg = guarded_config(tmp_path, data, plan, dict(drift='hold', max_hold=1))
    runner, recorder = run_with(cfg, tmp_path / 'run', RuinHook(epochs={1: RUINED, 2: 1.5}))
    assert (runner.epoch, runner.iter, runner.max_iters) == (5, 10, 10)
    rates = recorder.rates
    assert rates[2:4] == rates[:2] and rates[0] > rates[1] > rates[4] > rates[5]
    [scheduler] = runner.param_schedulers
    assert rates[4] == pytest.approx(1e-4 * scheduler.planned.plan.stages[0].factor(1.0))
    assert [actions for *_, actions in events(tmp_path / 'run')] == [['hold'], [], [], ['hold'], []]
    assert guard_json(tmp_path / 'run')['stages'][1] == dict(index=1, name='neck', first_epoch=3, first_iter=6)


def test_lower_rate(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [FLAT], dict(drift=['lower_rate'], rate_factor=0.25))
    runner, recorder = run_with(cfg, tmp_path / 'run', RuinHook(epochs={1: RUINED}))
    assert recorder.rates == pytest.approx([1e-4] * 2 + [2.5e-5] * 2)
    assert runner.message_hub.log_scalars['train/lr'].data[0].tolist() == pytest.approx(recorder.rates)


def test_rollback_and_its_end(data, tmp_path):
    """Back to the last good epoch; the frozen backbone's proof still holds; one more than allowed ends the run."""
    cfg = guarded_config(tmp_path, data, [dict(NECK, epochs=5)], dict(drift='rollback', max_rollbacks=1),
                         custom_hooks=[EMA])
    line, recorder = stopped(cfg, tmp_path / 'run', RuinHook(epochs={2: RUINED, 4: RUINED}))
    assert 'rolled back 1 times already' in line and 'those of epoch 3, last_good.pth' in line
    assert events(tmp_path / 'run') == [('drift', 'validation', 4, ['rollback']), ('drift', 'validation', 8, ['stop'])]
    assert len(recorder.states) == 9
    assert differences(recorder.validated[1], recorder.validated[0]) == []  # weights, averages, moments, all
    assert differences(recorder.states[4], recorder.validated[1]) != []


def test_the_best_checkpoint_holds_the_weights_that_were_measured(data, tmp_path):
    """Out of the band, and the best by the main metric: what is saved as the best is not what the run went back to."""
    cfg = guarded_config(tmp_path, data, [FLAT], dict(drift='rollback'))
    cfg.default_hooks.checkpoint.save_best = 'table/value'
    run(cfg, tmp_path / 'run', hooks=[RuinHook(epochs={1: RUINED})])
    assert events(tmp_path / 'run')[0] == ('drift', 'validation', 2, ['rollback'])
    start = loaded(tmp_path / 'run' / START)['state_dict']
    best = tmp_path / 'run' / 'best_table_value_epoch_1.pth'
    assert not best.exists() or differences(loaded(best)['state_dict'], start) != []


def test_stop(data, tmp_path):
    """By a rate far too high, as it would happen."""
    cfg = guarded_config(tmp_path, data, [dict(FLAT, lr=30.0)], dict(drift='stop'))
    cfg.plan.allow = ['rate']
    line, _ = stopped(cfg, tmp_path / 'run')
    assert 'drift in validation, epoch 1, iteration 2' in line and 'those it started from' in line
    assert events(tmp_path / 'run')[-1] == ('drift', 'validation', 2, ['stop'])


def test_a_validation_loss_that_is_not_finite(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1)], dict(nan='stop'))
    line, _ = stopped(cfg, tmp_path / 'run', RuinHook(epochs={1: float('nan')}))
    assert 'nan in validation, epoch 1' in line and guard_json(tmp_path / 'run')['validations'][0][
        'metrics']['val/loss'] is None


# ---- within an epoch

def test_spike_and_divergence(data, tmp_path):
    """The last layers are ruined before iteration 7: a spike, then at once a divergence, which goes back."""
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1)],
                         dict(window=4, interval=1, spike_factor=2.0, divergence_factor=1.5),
                         **{'train_dataloader.batch_size': 1, 'train_cfg.val_begin': 9})
    cfg.train_dataloader.dataset.indices = [0] * 8  # the same image, so that its loss says what the weights do
    _, recorder = run_with(cfg, tmp_path / 'run', RuinHook(iterations={6: RUINED}))
    assert events(tmp_path / 'run') == [('spike', 'training', 7, ['warn']),
                                        ('divergence', 'training', 7, ['lower_rate', 'rollback'])]
    start = loaded(tmp_path / 'run' / START)['state_dict']
    assert differences({key: start[key] for key in recorder.states[7]['weights']}, recorder.states[7]['weights']) == []
    assert recorder.rates == pytest.approx([1e-4] * 7 + [5e-5])


def test_a_drift_is_measured_before_it_counts(data, tmp_path):
    """A training loss that rises alone (here only what is reported of it) is none; ruined weights are."""
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1, lr=1e-7)],
                         dict(window=2, interval=1, images=1, divergence='warn', divergence_factor=1e9),
                         **{'train_dataloader.batch_size': 1, 'train_cfg.val_begin': 1})
    cfg.train_dataloader.dataset.indices = [0] * 8
    run(cfg, tmp_path / 'run', hooks=[FaultHook({3: 1.9}), RuinHook(iterations={6: RUINED})])
    found = [each for each in guard_json(tmp_path / 'run')['events'] if each['kind'] == 'drift']
    assert (found[0]['where'], found[0]['iter'], found[0]['actions']) == ('training', 7, ['warn'])
    record = newest(tmp_path / 'run')['guard']['record']
    assert set(found[0]['values']) == {'loss_obj', 'loss_cls'} and '1 validation images' in found[0]['text']
    assert record['subset']['val/loss'] > 0


def test_with_a_new_head_there_is_no_band(data, tmp_path):
    """plan.start='backbone': spikes and bad steps are seen, a loss above that of the loaded weights is not."""
    cfg = guarded_config(tmp_path, data, [FLAT],
                         dict(window=2, interval=1, spike_factor=1.5, divergence='warn'), **BY_TWO)
    cfg.plan = dict(start='backbone')
    run(cfg, tmp_path / 'run', hooks=[RuinHook(iterations={5: RUINED}), FaultHook({1: 'loss'})])
    record = guard_json(tmp_path / 'run')
    assert max(record['validations'][1]['ratios'][name] for name in record['guarded']) > 1.2
    kinds = [event['kind'] for event in record['events']]
    assert 'drift' not in kinds and {'nan', 'spike'} <= set(kinds) and record['start'] == 'backbone'


# ---- what is refused

@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(limit=0), 'limit must be above 0, got 0'), (dict(limit='a'), "limit must be above 0, got 'a'"),
    (dict(limit=float('nan')), 'limit must be above 0, got nan'),
    (dict(spike_factor=1), 'spike_factor must be above 1'), (dict(divergence_factor=0.5), 'divergence_factor must be'),
    (dict(images=0), 'images must be a whole number of at least 1, got 0'), (dict(window=2.5), 'got 2.5'),
    (dict(interval=-1), 'interval must be'), (dict(nan_patience=0), 'nan_patience must be'),
    (dict(drift='explode'), r"drift must be one or several of \('warn', 'hold'.*got 'explode'"),
    (dict(forgetting='forget'), 'forgetting must be one or several'),
    (dict(spike=[]), 'spike must be one or several'), (dict(nan=None), 'nan must be one or several'),
    (dict(divergence=['warn', 3]), 'divergence must be one or several'),
    (dict(rate_factor=1), 'rate_factor must be above 0 and below 1, got 1'),
    (dict(rate_factor='half'), 'rate_factor must be'),
    (dict(max_hold=-1), 'max_hold must be a whole number of at least 0, got -1'),
    (dict(max_rollbacks=None), 'max_rollbacks must be'), (dict(max_rollbacks=1.5), 'max_rollbacks must be'),
    (dict(patience=3), r"has no option \['patience'\]"),
    (dict(drift=5), 'drift must be one or several')],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else '')
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        DriftGuardHook(**arguments)
    assert '\n' not in str(caught.value)


def test_terms_that_are_not_there(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [FLAT], dict(terms=['loss_conf']))
    with pytest.raises(UserError, match=r"terms names 'loss_conf', and the losses are loss_coord, ") as caught:
        run(cfg, tmp_path / 'run')
    assert '\n' not in str(caught.value)


def test_without_a_plan(data, tmp_path):
    cfg = guarded_config(tmp_path, data, [FLAT])
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    cfg.optim_wrapper, cfg.param_scheduler = dict(optimizer=dict(type='Adam', lr=1e-4)), None
    cfg.default_hooks.pop('staged_unfreeze')
    with pytest.raises(UserError, match='DriftGuardHook needs a plan'):
        run(cfg, tmp_path / 'run')


@pytest.mark.parametrize(('scale', 'expected'), [(0.5, []), (50.0, [('mismatch', 'training', 2, ['warn'])])])
def test_training_losses_far_from_the_validations(data, tmp_path, scale, expected):
    """Other loss scales are seen as soon as the first training losses are smoothed; the recipe's are no mismatch."""
    cfg = guarded_config(tmp_path, data, [dict(FLAT, epochs=1)], dict(window=2, interval=1, drift='warn'))
    cfg.model.backbone.type = 'ScaledDarknet'  # whole: the first losses of an untrained shallow one stand elsewhere
    cfg.model.bbox_head.loss.no_object_scale = scale
    cfg.plan.allow = ['loss-scales']
    run(cfg, tmp_path / 'run')
    assert [each for each in events(tmp_path / 'run') if each[0] == 'mismatch'] == expected
    if expected:
        ratios = guard_json(tmp_path / 'run')['events'][0]['values']
        assert ratios['loss_obj'] > 3 > 2 > ratios['loss_cls']
