"""Each rule of the guide: one line that names it, and a person can switch it off."""
import copy

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan import rules
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.rules import ERRORS, WARNINGS, check_rules, refuse_broken
from tests.conftest import ROOT

HEAD = dict(name='head', epochs=5, freeze_level=2, lr=1e-4)
NECK = dict(name='neck', epochs=5, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1)
FULL = dict(name='full', epochs=9, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1)
GUIDE = [HEAD, NECK, FULL]


@pytest.fixture(scope='module')
def nano():
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_staged.py')
    return cfg, MODELS.build(cfg.model)


def broken(nano, stages=GUIDE, history=(), allow=(), start='full', loss=None, **options):
    cfg, model = nano
    cfg = Config(dict(stages=stages, plan=dict(start=start, allow=allow),
                      model=dict(bbox_head=dict(loss=dict(cfg.model.bbox_head.loss, **(loss or {})))), **options))
    return check_rules(Plan.from_cfg(cfg), cfg, model, history)


def test_the_guide_itself_breaks_none(nano):
    assert broken(nano) == []


BREAKING = {
    'skipped-level': (dict(stages=[HEAD, FULL]), "'head' trained only the head and stage 'full' frees everything"),
    'rate': (dict(stages=[dict(HEAD, lr=2e-4), NECK, FULL]), "stage 'head': lr 0.0002 is 0.0002, .* at most 0.0001"),
    'loss-scales': (dict(loss=dict(coord_scale=1.0)), 'coord_scale is 1, theirs 5'),
    'grid-normalizer': (dict(loss=dict(normalizers=('batch', 'grid'))), "'grid' divides"),
    'mixing-while-frozen': (dict(stages=[dict(HEAD, mixup_prob=0.1), NECK, FULL]), 'trains only the head and has '
                            'mixup_prob 0.1'),
    'many-knobs': (dict(stages=[HEAD, dict(NECK, lr=4e-5), FULL]), "'head' to 'neck' rate and augmentation change"),
    'starts-thawed': (dict(stages=[dict(FULL, name='a'), dict(FULL, name='b')]), "'a' trains everything from the"),
    'plateau-unreached': (dict(stages=[HEAD, NECK, dict(FULL, schedule='plateau', plateau=dict(patience=9))]),
                          "'full': the rate falls when val/loss has not improved for 9 validations, and .* has 9:"),
    'cut-short': (dict(train_cfg=dict(max_epochs=7)), "max_epochs=7 ends the plan of 19 epochs in stage 'neck'"),
}


def test_every_rule_is_here():
    assert set(BREAKING) == {*ERRORS, *WARNINGS}


@pytest.mark.parametrize('rule', BREAKING)
def test_each_broken_rule_gives_one_line_and_can_be_switched_off(nano, rule):
    import re
    options, message = BREAKING[rule]
    found = [each for each in broken(nano, **options) if each.rule == rule]
    assert len(found) == 1 and re.search(message, found[0].line()) and '\n' not in found[0].line()
    assert f"plan.allow=['{rule}']" in found[0].line()
    assert found[0].is_error == (rule in ERRORS)
    assert [each for each in broken(nano, allow=[rule], **options) if each.rule == rule] == []
    if rule in ERRORS:
        with pytest.raises(UserError, match=message):
            refuse_broken(found)
    else:
        assert refuse_broken(found) == [found[0].line()]


def test_rates_count_multiplier_and_boost(nano):
    [one] = broken(nano, [HEAD, NECK, dict(FULL, lr_mult={'bbox_head': 5.0})])
    assert 'lr 3e-05 times 5 (multipliers of bbox_head.' in one.text and 'is 0.00015' in one.text
    [one] = broken(nano, [HEAD, NECK, dict(FULL, boost=4.0, boost_epochs=1)])
    assert 'lr 3e-05 times 4 (boost) is 0.00012' in one.text
    assert broken(nano, [HEAD, NECK, dict(FULL, lr_mult={'backbone': 0.1})]) == []
    # of what is frozen the rate does not matter
    assert broken(nano, [HEAD, dict(NECK, lr_mult={'backbone': 5.0}), FULL]) == []


def test_rates_count_the_optimizers_multipliers(nano):
    wrapper = dict(constructor='StagedOptimWrapperConstructor',
                   paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=10)}))
    [one] = broken(nano, optim_wrapper=wrapper)
    assert "stage 'full': lr 3e-05 times 10 (multipliers of backbone." in one.text


def test_rates_of_other_starts_are_free(nano):
    for start in ('backbone', 'nothing'):
        assert broken(nano, [dict(NECK, lr=2e-4), dict(FULL, lr=2e-4)], start=start) == []


def test_loss_scales_from_nothing_are_free(nano):
    assert broken(nano, [FULL], start='nothing', loss=dict(coord_scale=0.5)) == []
    assert [each.rule for each in broken(nano, start='backbone', loss=dict(coord_scale=0.5))] == ['loss-scales']


def test_positives_are_a_choice(nano):
    assert broken(nano, loss=dict(normalizers=('positives', ))) == []


def test_history_of_the_weights_counts(nano):
    """Stage configs are runs of their own: what the weights went through before is in their checkpoint."""
    head = [dict(name='head', trained_parts=['bbox_head'])]
    [one] = broken(nano, [FULL], head)
    assert one.rule == 'skipped-level' and "come from stage 'head', in which only the head trained, and" in one.text
    assert broken(nano, [FULL], [*head, dict(name='neck', trained_parts=['neck', 'bbox_head'])]) == []
    assert broken(nano, [NECK], head) == []


def test_lists_of_names_are_judged_by_what_they_train(nano):
    predict = dict(HEAD, freeze_level=None, train=['bbox_head.predict_convs'])
    everything = dict(FULL, freeze_level=None, freeze=[])
    assert [each.rule for each in broken(nano, [predict, everything])] == ['skipped-level', 'many-knobs']
    assert [each.rule for each in broken(nano, [dict(predict, mosaic_prob=0.5), NECK, FULL])] == [
        'mixing-while-frozen', 'many-knobs']


def test_unknown_rule_in_allow(nano):
    with pytest.raises(UserError, match=r"names no rule \['rates'\]; there are skipped-level"):
        broken(nano, allow=['rates'])


def test_first_error_names_the_others(nano):
    with pytest.raises(UserError, match=r'also broken: loss-scales \(python tools/plan.py CFG shows all\)'):
        refuse_broken(broken(nano, [HEAD, FULL], loss=dict(class_scale=2.0)))


def test_rules_are_asked_once(monkeypatch, nano):
    """A run asks what its tool asked before, from the start its first run had, too: the answer is remembered."""
    cfg, model = nano
    plan, asked = Plan.from_cfg(cfg), []
    monkeypatch.setattr(rules, '_levels', lambda *_: asked.append(1) or ())
    plan.answers.clear()
    copied = Config(copy.deepcopy(cfg._cfg_dict), filename=cfg.filename)
    again = Plan.from_cfg(copied)
    assert again is plan and check_rules(plan, cfg, model) is check_rules(again, copied, model)
    resumed = plan.with_start('nothing').with_start(plan.start)
    assert check_rules(resumed, copied, model) == check_rules(plan, cfg, model) and asked == [1]
    check_rules(plan.with_start('nothing'), cfg, model)
    assert asked == [1, 1]  # another question


def test_a_plateau_waits_less_long_than_the_end(nano):
    """The rate falls after 3 validations without improvement, the run ends after 10, or after 3, or by another one."""
    def found(stopping, **options):
        stages = [HEAD, NECK, dict(FULL, schedule='plateau', plateau=dict(patience=3))]
        cfg = Config(dict(stages=stages, plan=dict(start='full', early_stopping=stopping), model={}, **options))
        return [each.text for each in rules._plateaus(Plan.from_cfg(cfg), cfg)]

    assert found(dict(metric='val/loss', patience=10)) == found(dict(metric='x/mAP', patience=3)) == found(None) == []
    assert 'the stage ends when it has not for 3' in found(dict(metric='val/loss', patience=3))[0]
    assert 'for 3 validations, and the stage has 3' in found(None, train_cfg=dict(val_interval=3))[0]
