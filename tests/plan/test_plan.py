"""Stages as data: what is refused, and the rate at every moment."""
import math

import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan, Stage, build_plan
from mgdet_plugin.plan.progress import Progress

HEAD = dict(name='head', epochs=5, freeze_level=2, lr=1e-4)
NECK = dict(name='neck', epochs=2, freeze_level=1, lr=5e-5)


def test_the_stage_of_an_epoch_without_a_record():
    plan = Plan(build_plan([HEAD, NECK]))
    assert [Progress.at(plan, epoch + 1, 1).stage for epoch in (0, 4, 5, 6, 7, 100)] == [0, 0, 1, 1, 1, 1]
    assert Progress.at(plan, 5 + 1, 1).current(plan) == Stage('neck', 2, 5e-5, 1)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(freeze_level=3), r'freeze_level must be one of \(0, 1, 2\), got 3'),
    (dict(freeze_level=True), 'freeze_level must be one of'),
    (dict(epochs=0), 'epochs must be a whole number of at least 1, got 0'),
    (dict(epochs=2.5), '2.5'), (dict(epochs=True), 'epochs'),
    (dict(lr=0), 'lr must be a positive number, got 0'), (dict(lr=float('nan')), 'lr'), (dict(lr='1e-4'), "got '1e-4'"),
    (dict(colour='red'), r"has no field \['colour'\]"),
    (dict(mosaic_prob=1.3), 'the probability of mosaic must be from 0 to 1, got 1.3'),
    (dict(probs=dict(RandomFlip=-1)), 'RandomFlip'),
    (dict(lr_mult=dict(neck=0)), r"lr_mult\['neck'\] must be a positive number, got 0; to hold a part still freeze it"),
    (dict(schedule='step'), 'schedule must be one of'), (dict(eta_min_ratio=2), 'at most 1'),
    (dict(warmup_epochs=4, boost=2, boost_epochs=2), 'longer than its 5 epochs'),
    (dict(freeze=['neck']), r"exactly one of freeze_level, freeze and train, got \['freeze_level', 'freeze'\]"),
    (dict(freeze_level=None), 'got none'), (dict(freeze_level=None, train=[]), 'train is empty'),
    (dict(batch_size=0), 'batch_size'),
    (dict(restore_best=True), 'restore_best needs until'),
    (dict(until='mAP'), "until must be dict\\(metric=..., patience=...\\), got 'mAP'"),
    (dict(until=dict(metric='x')), 'until needs metric and patience'),
    (dict(until=dict(metric='x', patience=0)), 'at least 1'),
    (dict(until=dict(metric='x', patience=1, rule='up')), 'until.rule'),
    (dict(until=dict(metric='x', patience=1, min_epochs=0)), 'until.min_epochs must be .* at least 1, got 0'),
    (dict(plateau=dict(patience=3)), "plateau is of schedule='plateau', got schedule='cosine'"),
    (dict(schedule='plateau', plateau=dict(factor=1)), 'plateau.factor must be above 0 and below 1, got 1'),
    (dict(schedule='plateau', plateau=dict(factor='half')), "got 'half'"),
    (dict(schedule='plateau', plateau=dict(patience=2.5)), 'plateau.patience must be a whole .* got 2.5'),
    (dict(schedule='plateau', plateau=dict(min_lr=1e-4)), 'plateau.min_lr 0.0001 is not below lr 0.0001'),
    (dict(schedule='plateau', plateau=dict(min_delta=-1)), 'plateau.min_delta must be .* got -1'),
    (dict(schedule='plateau', plateau=dict(cooldown=-1)), 'plateau.cooldown must be .* got -1'),
    (dict(schedule='plateau', plateau=3), r'plateau must be dict\(metric=..., patience=...\), got 3'),
    (dict(schedule='plateau', plateau=dict(step=3)), "plateau needs metric and patience and takes .*'min_lr'"),
])
def test_bad_stages(change, message):
    with pytest.raises(UserError, match=message):
        build_plan([{**HEAD, **change}])


def test_bad_plans():
    for stages in ([], None, dict(HEAD)):
        with pytest.raises(UserError, match='at least one'):
            build_plan(stages)
    with pytest.raises(UserError, match=r"lacks \['lr'\]"):
        build_plan([dict(name='head', epochs=5, freeze_level=2)])
    with pytest.raises(UserError, match='different names'):
        build_plan([HEAD, HEAD])
    with pytest.raises(UserError, match='a stage must be a dict, got 3'):
        build_plan([3])


def test_start_follows_from_what_is_loaded():
    pretrained = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth')))
    for cfg, start in ((dict(load_from='a.pth', model={}), 'full'), (dict(model=pretrained), 'backbone'),
                       (dict(model={}), 'nothing'), (dict(load_from='epoch_3.pth', resume=True, model={}), 'nothing'),
                       (dict(load_from='a.pth', model={}, plan=dict(start='nothing')), 'nothing')):
        assert Plan.from_cfg(Config(dict(stages=[HEAD], **cfg))).start == start
    for options, message in ((dict(start='half'), 'plan.start must be one of'), (dict(stop=1), 'no option')):
        with pytest.raises(UserError, match=message):
            Plan.from_cfg(Config(dict(stages=[HEAD], plan=options)))


def test_another_config_is_another_plan_and_the_same_one_is_parsed_once():
    """Each entry that a plan follows from, changed after it was asked for."""
    cfg = Config(dict(stages=[HEAD], load_from='a.pth', model=dict(backbone=dict(type='Darknet'))))
    plan = Plan.from_cfg(cfg)
    assert Plan.from_cfg(Config(cfg.to_dict())) is plan
    assert (plan.keep, plan.trunk_cache, plan.early_stopping) == (None, None, None)
    for change, of in ((dict(keep=dict(images='old')), 'keep'), (dict(trunk_cache=dict(where='file')), 'trunk_cache'),
                       (dict(val_cfg=dict(type='LossValLoop')), 'early_stopping'), (dict(stages=[NECK]), 'stages'),
                       (dict(resume=True), 'start'), (dict(load_from=None), 'start'),
                       (dict(plan=dict(allow='unknown')), 'allow')):
        other = Plan.from_cfg(Config({**cfg.to_dict(), **change}))
        assert getattr(other, of) != getattr(plan, of), change
    assert Plan.from_cfg(Config({**cfg.to_dict(), 'trunk_cache': dict(where='file')})).trunk_cache.where == 'file'


def test_factor_of_the_recipe():
    """5 epochs: 3 of warmup from a hundredth, then a cosine to 1e-7 / 1e-4."""
    stage = Stage.build(HEAD)
    assert stage.factor(0) == pytest.approx(0.01)
    assert stage.factor(1.5) == pytest.approx((0.01 + 1) / 2)
    assert stage.factor(3) == 1
    assert stage.factor(4) == pytest.approx((1 + 1e-3) / 2)
    assert stage.factor(5) == stage.factor(7) == pytest.approx(1e-3)


def test_factor_with_boost():
    """Scenario 2: an epoch of warmup to twice the rate, two epochs there, then a cosine from the rate itself."""
    stage = Stage.build(dict(HEAD, epochs=11, warmup_epochs=1, boost=2.0, boost_epochs=2, eta_min_ratio=0))
    assert [stage.factor(done) for done in (0, 0.5, 1, 2.999, 3)] == pytest.approx([0.02, 1.01, 2, 2, 1])
    assert stage.factor(7) == pytest.approx(0.5) and stage.factor(11) == pytest.approx(0, abs=1e-12)
    assert stage.peak_boost == 2 and Stage.build(HEAD).peak_boost == 1


def test_constant_and_short_stages():
    assert Stage.build(dict(HEAD, schedule='constant')).factor(4.9) == 1
    one = Stage.build(dict(HEAD, epochs=1))
    assert one.warmup == pytest.approx(0.6) and one.factor(1) == pytest.approx(1e-3)
    assert all(math.isfinite(one.factor(done / 10)) for done in range(20))
    assert Stage.build(dict(HEAD, warmup_epochs=5)).factor(5) == pytest.approx(1e-3)


def test_a_clean_stage_leaves_the_base_augmentation_out():
    probs = Stage.build(dict(HEAD, clean=True, probs=dict(RandomFlip=0.5))).step_probs()
    assert probs == dict(PhotoMetricDistortion=0, RandomAffine=0, RandomFlip=0.5, mosaic=0, mixup=0)
    assert Stage.build(HEAD).step_probs() == dict(mosaic=0, mixup=0)
