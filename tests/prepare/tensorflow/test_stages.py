"""Epochs, freezing, rates and mixing of a training file as stages."""
import itertools
import random

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Stage, build_plan
from mgdet_plugin.prepare.tensorflow.account import CARRIED, DIFFERS, Account
from mgdet_plugin.prepare.tensorflow.losses import loss_fields
from mgdet_plugin.prepare.tensorflow.model_file import BASE_ANCHORS, read_anchors
from mgdet_plugin.prepare.tensorflow.running import early_stopping, multi_scale, optimizer
from mgdet_plugin.prepare.tensorflow.stages import stages_of
from tests.support.tensorflow_files import ANCHORS, TRAINING


def account(**changes):
    """Keys of the example, some changed, told by their last part; a value of ... leaves one out."""
    values = dict(TRAINING)
    for name, value in changes.items():
        for key in [key for key in values if key.rpartition('.')[2] == name] or [name]:
            values[key] = value
    return Account('my.yaml', {key: value for key, value in values.items() if value is not ...})


def shape(scenario, **changes):
    return [(each['name'], each['epochs'], each['freeze_level']) for each, _ in stages_of(account(**changes), scenario)]


@pytest.mark.parametrize(('changes', 'stages'), [
    (dict(), [('full', 100, 0)]),
    (dict(transfer_epochs=10), [('neck', 10, 1), ('full', 90, 0)]),
    (dict(transfer_epochs=5, freeze_level=2), [('head', 5, 2), ('neck', 5, 1), ('full', 90, 0)]),
    (dict(transfer_epochs=5, freeze_level=2, epochs=6), [('head', 5, 2), ('neck', 1, 1)]),
    (dict(transfer_epochs=5, freeze_level=2, epochs=10), [('head', 5, 2), ('neck', 2, 1), ('full', 3, 0)]),
    (dict(transfer_epochs=5, freeze_level=2, epochs=4), [('head', 4, 2)]),
    (dict(transfer_epochs=10, initial_epoch=4), [('neck', 6, 1), ('full', 90, 0)]),
    (dict(transfer_epochs=10, initial_epoch=20), [('full', 80, 0)]),
    (dict(transfer_epochs=10, freeze_level=0), [('full', 100, 0)]),
])
def test_freezing_becomes_stages_with_the_neck_between(changes, stages):
    assert shape('full', **changes) == stages


def test_from_a_backbone_the_head_may_come_alone():
    assert shape('backbone', transfer_epochs=5, freeze_level=2) == [('head', 5, 2), ('full', 95, 0)]


def test_any_file_becomes_a_plan_whose_epochs_are_its_own():
    draw = random.Random(0)
    for _ in range(300):
        epochs, done = draw.randint(1, 120), draw.randint(0, 30)
        changes = dict(
            epochs=epochs, initial_epoch=done, transfer_epochs=draw.randint(0, 40), freeze_level=draw.randint(0, 2),
            learning_rate=10 ** draw.uniform(-6, -2), warmup_epochs=draw.randint(0, 20),
            min_lr=draw.choice([0, 1e-7, 1e-3]),
            warmup_lr_factor=draw.random(), mosaic_prob=draw.random(), mixup_prob=draw.random(),
            enhance_type=draw.choice([None, 'mosaic', 'gridmask']))
        scenario = draw.choice(['full', 'backbone'])
        plan = build_plan([fields for fields, _ in stages_of(account(**changes), scenario)])
        assert sum(stage.epochs for stage in plan) == max(1, epochs - done)
        levels = [stage.freeze_level for stage in plan]
        assert levels == sorted(levels, reverse=True)
        assert scenario != 'full' or (2, 0) not in itertools.pairwise(levels)
        assert all(stage.mosaic_prob == stage.mixup_prob == 0 for stage in plan if stage.freeze_level == 2)
        assert scenario != 'full' or all(stage.lr <= 1e-4 for stage in plan)


def test_rates_are_carried_over():
    fields, _ = stages_of(account(learning_rate=5e-5, min_lr='1e-8', warmup_lr_factor=0.1, warmup_epochs=2), 'full')[0]
    stage = Stage.build(fields)
    assert (stage.lr, stage.warmup, stage.warmup_ratio, stage.eta_ratio) == (5e-5, 2, 0.1, pytest.approx(2e-4))
    assert stage.factor(0) == 0.1 and stage.factor(2) == 1 and stage.factor(100) == pytest.approx(2e-4)


def test_the_optimizers_rate_counts_and_too_high_a_one_is_lowered():
    found = account(learning_rate=1e-3)
    found.values = {**found.values, 'training.learning_rate': 3e-5}
    assert stages_of(found, 'full')[0][0]['lr'] == 1e-4
    assert [found.entries[f'{each}.learning_rate'].outcome for each in ('optimizer', 'training')] == [DIFFERS] * 2
    assert stages_of(account(learning_rate=1e-3), 'backbone')[0][0]['lr'] == 1e-3


@pytest.mark.parametrize(('changes', 'fields'), [
    (dict(type='constant'), dict(schedule='constant', warmup_epochs=0.0)),
    (dict(type='reduce_on_plateau'), dict(schedule='plateau', warmup_epochs=0.0, plateau=dict(
        factor=0.5, patience=3, min_lr=1e-7))),
    (dict(type='reduce_on_plateau', factor=0.2, patience=7, min_lr='1e-6'), dict(schedule='plateau', plateau=dict(
        factor=0.2, patience=7, min_lr=1e-6))),
])
def test_schedules(changes, fields):
    found = account(**{f'lr_schedule.{name}': value for name, value in changes.items()})
    stages = [each for each, _ in stages_of(found, 'full')]
    assert all(fields.items() <= each.items() for each in stages)
    outcomes = {name: found.entries[f'lr_schedule.{name}'].outcome for name in changes}
    assert set(outcomes.values()) == {CARRIED}


def test_a_plateau_with_a_factor_that_is_none_is_refused():
    with pytest.raises(UserError, match=r'lr_schedule\.factor is 1; a number from 1e-06 to'):
        stages_of(account(**{'lr_schedule.type': 'reduce_on_plateau', 'lr_schedule.factor': 1}), 'full')


def test_mosaic_needs_its_type_and_all_of_it_augmentation():
    def mixing(**changes):
        fields, _ = stages_of(account(**changes), 'full')[0]
        return fields['mosaic_prob'], fields['mixup_prob'], fields.get('clean', False)
    assert mixing() == (0.3, 0.1, False) and mixing(enhance_type=None) == (0.0, 0.1, False)
    found = account()
    found.values = {**found.values, 'training.augmentation.enabled': False}
    assert (stages_of(found, 'full')[0][0]['mosaic_prob'], stages_of(found, 'full')[0][0]['clean']) == (0.0, True)


def test_losses():
    fields = loss_fields(account(), 'full')
    assert fields['consensus_scale'] == 0.5 and fields['class_weights'] is None and 'iou_loss' not in fields
    other = loss_fields(account(loss_option=3, loss_normalization=['positives', 'grid'], class_weights=[1, 2],
                                use_consensus_loss=False), 'full')
    assert other['normalizers'] == ('positives', ) and other['class_weights'] == (1.0, 2.0)
    assert other['iou_loss']['type'] == 'DIoULoss' and 'consensus_scale' not in other
    assert not set(loss_fields(account(coord_scale=1.0), 'full')) & {'coord_scale', 'object_scale'}  # kept
    assert loss_fields(account(class_weights='auto', class_weights_method='inverse'), 'nothing') == dict(
        class_weights='inverse')
    with pytest.raises(UserError, match='loss_option is 4; 1, 2 or 3'):
        loss_fields(account(loss_option=4), 'full')


def test_running():
    assert optimizer(account(), 'full') == {} == optimizer(account(), 'nothing')
    adam = optimizer(account(beta_1=0.8), 'full')['optim_wrapper']['optimizer']
    assert adam == dict(betas=(0.8, 0.999))
    decayed = optimizer(account(**{'optimizer.type': 'AdamW'}), 'full')['optim_wrapper']['optimizer']
    assert decayed == dict(_delete_=True, type='AdamW', betas=(0.9, 0.999), eps=1e-7, weight_decay=0.0005)
    sgd = optimizer(account(**{'optimizer.type': 'sgd', 'optimizer.momentum': 0.9}), 'full')['optim_wrapper']
    assert sgd['optimizer'] == dict(_delete_=True, type='SGD', momentum=0.9, nesterov=False)
    assert multi_scale(account()) == early_stopping(account(), 'full') == {}
    assert early_stopping(account(patience=3), 'full')['plan']['early_stopping']['patience'] == 3
    assert multi_scale(account(rescale_interval=5))['data_preprocessor']['batch_augments'][0]['interval'] == 5


@pytest.mark.parametrize('text', [ANCHORS, ', '.join(reversed(ANCHORS.split('\n'))), ANCHORS.replace(' ', ', ')])
def test_anchors_are_read_coarse_scale_first(tmp_path, text):
    (tmp_path / 'anchors.txt').write_text(text)
    assert read_anchors(tmp_path / 'anchors.txt') == BASE_ANCHORS


def test_other_anchors_are_refused(tmp_path):
    (tmp_path / 'anchors.txt').write_text('10,13 16,30\n')
    with pytest.raises(UserError, match='holds 4 numbers; nine anchors'):
        read_anchors(tmp_path / 'anchors.txt')
