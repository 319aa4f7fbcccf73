"""The record of where a run is."""
import json

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan, build_plan
from mgdet_plugin.plan.progress import Progress, stages_before

UNTIL = dict(metric='coco/bbox_mAP', patience=2, min_epochs=3, min_delta=0.01)
PLAN = Plan(build_plan([dict(name='a', epochs=6, freeze_level=2, lr=1e-4, until=UNTIL),
                        dict(name='b', epochs=2, freeze_level=1, lr=5e-5),
                        dict(name='c', epochs=4, freeze_level=0, lr=3e-5, until=dict(metric='loss', patience=1))]))


def validate(progress, values, metric='coco/bbox_mAP', first=0):
    return [progress.after_validation(PLAN, first + epoch, {metric: value})
            for epoch, value in enumerate(values, 1)]


def test_patience_and_best():
    progress = Progress()
    assert validate(progress, [0.1, 0.2, 0.205]) == [True, True, False]
    assert (progress.best, progress.best_epoch, progress.misses, progress.ended) == (0.2, 2, 1, False)
    validate(progress, [0.19], first=3)
    assert progress.ended and progress.is_over(PLAN, 4) and progress.last_epoch(PLAN, 4) == 4 + 2 + 4


def test_min_epochs_hold_a_stage():
    progress = Progress()
    validate(progress, [0.5, 0.1, 0.1])
    assert progress.ended
    progress = Progress(first_epoch=1)
    validate(progress, [0.5, 0.1, 0.1])
    assert progress.misses == 2 and not progress.ended  # only two epochs of the stage are done


def test_the_longest_a_stage_may_last():
    progress = Progress()
    validate(progress, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert not progress.is_over(PLAN, 5) and progress.is_over(PLAN, 6) and progress.last_epoch(PLAN, 5) == 12


def test_less_is_better_for_a_loss_and_nan_is_no_improvement():
    progress = Progress(stage=2, first_epoch=8)
    assert validate(progress, [3.0, 2.0], 'loss', 8) == [True, True]
    assert validate(progress, [float('nan')], 'loss', 10) == [False] and progress.ended
    assert validate(Progress(stage=2), [float('nan')], 'loss') == [False]


def test_a_validation_without_figures_is_no_improvement():
    """mmdet's CocoMetric gives none where nothing was detected, as happens with a new head."""
    progress = Progress()
    assert [progress.after_validation(PLAN, epoch, {}) for epoch in (1, 2)] == [False, False]
    assert progress.misses == 2 and not progress.ended
    assert not Progress().after_validation(PLAN, 1, {'retention/mAP': 0.5})


def test_everything_of_a_stage_starts_anew_at_an_edge():
    progress = Progress()
    validate(progress, [0.5, 0.1])
    progress.advance(2, 20, dict(name='a'))
    assert (progress.stage, progress.first_epoch, progress.first_iter) == (1, 2, 20)
    assert (progress.best, progress.misses, progress.ended, progress.digests) == (None, 0, False, {})
    assert progress.history == [dict(name='a')]


def test_there_and_back():
    progress = Progress(stage=1, first_epoch=3, best=0.5, digests={'a': 'ff'}, history=[dict(name='a')])
    plain = json.loads(json.dumps(progress.to_plain()))
    assert Progress.from_plain(dict(plain, entry=dict(name='b'), later_field=1), PLAN) == progress


def test_without_a_record():
    assert [Progress.at(PLAN, epoch, 5).stage for epoch in (0, 1, 6, 7, 8, 9, 12)] == [0, 0, 0, 1, 1, 2, 2]
    late = Progress.at(PLAN, 9, 5)
    assert (late.first_epoch, late.first_iter, late.validated) == (8, 40, 9)


def test_the_stages_that_weights_went_through():
    """Those of the run that saved a checkpoint count for who loads it, not for who resumes it."""
    before, first, second = (dict(name=name, trained_parts=['neck']) for name in 'xab')
    found = dict(mgdet=dict(stage=1, history=[before, first], entry=second))
    assert stages_before(found) == [before, first, second]
    assert stages_before(found, own=False) == [before]
    assert stages_before(dict(mgdet=dict(history=[before], entry=second)), own=False) == [before]
    assert stages_before(dict(mgdet=dict(entry=dict(name='a')))) == []  # of before parts were noted
    assert stages_before({}) == stages_before(dict(mgdet='a')) == []


def test_refuses():
    with pytest.raises(UserError, match=r"stage 'a' goes by coco/bbox_mAP, which the validation does not give; it "
                                        'gives coco/AP'):
        Progress().after_validation(PLAN, 1, {'coco/AP': 1.0})
    with pytest.raises(UserError, match="made in stage 'neck', and stage 2 of the plan is 'b': that is another run"):
        Progress.from_plain(dict(stage=1, entry=dict(name='neck')), PLAN)
    with pytest.raises(UserError, match='made in stage 4 and the plan has 3'):
        Progress.from_plain(dict(stage=3), PLAN)
    with pytest.raises(UserError, match=r'^mgdet\.held is -1, expected a whole number from 0'):
        Progress.from_plain(dict(held=-1), PLAN)
    assert Progress.from_plain(dict(stage=0, entry=dict(name='a')), PLAN) == Progress()


def test_the_last_stage_made_longer():
    progress = Progress(stage=2, first_epoch=8)
    progress.extend(PLAN, 15)
    assert (progress.more, progress.end(PLAN), progress.last_epoch(PLAN, 12)) == (3, 15, 15)
    assert not progress.is_over(PLAN, 14) and progress.is_over(PLAN, 15)
    assert progress.iterations(PLAN, 15, 15, (5, 5, 5)) == 35  # from iteration 0, where this record says it began


def test_a_stage_that_had_ended_early_waits_anew_and_keeps_its_best():
    progress = Progress(stage=2, first_epoch=8)
    validate(progress, [3.0, 2.0, 2.5], 'loss', 8)
    assert progress.ended and progress.last_epoch(PLAN, 11) == 11
    progress.extend(PLAN, 13)
    assert (progress.ended, progress.best, progress.misses, progress.end(PLAN)) == (False, 2.0, 0, 13)
    progress.extend(PLAN, 11)
    assert progress.more == -1 and progress.is_over(PLAN, 11)
