"""When a rate falls: as by Keras' callback, on any series of losses, and never up."""
import random
from types import SimpleNamespace

import pytest

from mgdet_plugin.plan.plan import Plan, build_plan
from mgdet_plugin.plan.progress import Progress
from mgdet_plugin.weights.keras_model import load_keras

LR = 1e-4
STAGE = dict(name='a', epochs=40, freeze_level=0, lr=LR, schedule='plateau', warmup_epochs=0)
OPTIONS = [dict(factor=0.5, patience=3, min_lr=1e-7),  # the TensorFlow project's
           dict(factor=0.1, patience=1, min_lr=3e-6), dict(factor=0.3, patience=2, cooldown=1),
           dict(factor=0.5, patience=2, cooldown=3, min_delta=0.05), dict(metric='coco/bbox_mAP', patience=2)]


def plan_of(**changes):
    return Plan(build_plan([{**STAGE, **changes}, dict(STAGE, name='b')]))


def ours(values, metric='val/loss', **options):
    """The rate after each validation."""
    plan, progress, rates = plan_of(plateau=dict(options, metric=metric)), Progress(), []
    for epoch, value in enumerate(values, 1):
        progress.after_validation(plan, epoch, {metric: value})
        rates.append(LR * progress.rate_factor)
    return rates


def keras_rates(values, metric='val/loss', **options):
    callback = load_keras().callbacks.ReduceLROnPlateau(metric, mode='max' if 'mAP' in metric else 'min', **options)
    callback.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=LR)))
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {metric: value})
        rates.append(float(callback.model.optimizer.learning_rate))
    return rates


@pytest.mark.parametrize('options', OPTIONS)
def test_the_rate_falls_where_keras_lets_it_fall(options):
    rng = random.Random(0)
    series = [[rng.uniform(0, 1) for _ in range(40)] for _ in range(20)] + [[1 - 0.02 * step for step in range(40)]]
    fell = 0
    for values in series:
        found = ours(values, **options)
        assert found == pytest.approx(keras_rates(values, **options), rel=1e-6)
        assert found == sorted(found, reverse=True)
        fell += found[-1] < LR
    assert fell >= 20  # or nothing was compared


def test_by_hand():
    """2.0 is not improved on three times, then by less than min_delta; the floor is reached and kept."""
    rates = ours([2.0, 2.1, 2.2, 2.0, 1.99995, 2.0, 2.0, 1.5, 1.6, 1.6, 1.6], factor=0.1, patience=3, min_lr=2e-6)
    assert rates == pytest.approx([1e-4] * 3 + [1e-5] * 3 + [2e-6] * 5)


def test_misses_count_from_the_end_of_warmup_and_boost_on():
    plan = plan_of(warmup_epochs=2, boost=2.0, boost_epochs=1, plateau=dict(patience=2))
    progress, falls = Progress(), []
    for epoch, value in enumerate([1.0, 2.0, 2.0, 2.0], 1):
        progress.after_validation(plan, epoch, {'val/loss': value})
        falls.append(progress.fallen)
    assert falls == [1.0, 1.0, 1.0, 0.1]


def test_a_figure_that_is_missing_or_of_weights_that_are_gone_is_no_improvement():
    plan, progress = plan_of(plateau=dict(patience=2)), Progress()
    progress.after_validation(plan, 1, {})
    progress.after_validation(plan, 2, {'val/loss': 1.0}, void=True)
    assert progress.fallen == 0.1 and progress.level is None


def test_the_next_stage_begins_at_its_full_rate_and_the_guards_lowering_stays():
    plan, progress = plan_of(plateau=dict(patience=1)), Progress(damping=0.5)
    progress.after_validation(plan, 1, {'val/loss': 1.0})
    progress.after_validation(plan, 2, {'val/loss': 1.0})
    assert progress.rate_factor == pytest.approx(0.05)
    progress.advance(2, 4, {})
    assert (progress.rate_factor, progress.level, progress.waited) == (0.5, None, 0)
