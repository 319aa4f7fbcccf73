"""Figures that a config goes by, held against those its evaluators give, before anything is trained."""
from contextlib import nullcontext

import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.wiring import check_figures, check_wiring

VOC, COCO = dict(type='VOCMetric'), dict(type='CocoMetric', ann_file='not read')
STAGE = dict(name='head', epochs=4, lr=1e-4, freeze_level=1)


def check(best='auto', evaluator=VOC, until=None, loop='LossValLoop', others=None, rule=None, stopping=None,
          plateau=None):
    stage = dict(STAGE, until=dict(metric=until, patience=2)) if until else STAGE
    stage = dict(stage, schedule='plateau', plateau=dict(metric=plateau)) if plateau else stage
    cfg = Config(dict(
        stages=[stage], plan=dict(start='full', **({'early_stopping': dict(metric=stopping)} if stopping else {})),
        val_cfg=dict(type=loop, **({'others': others} if others else {})), val_evaluator=evaluator,
        default_scope='mmdet', default_hooks=dict(checkpoint=dict(save_best=best, rule=rule)), model={}))
    check_figures(cfg, Plan.from_cfg(cfg))


@pytest.mark.parametrize('given', [
    dict(best='pascal_voc/mAP', until='pascal_voc/AP50'), dict(best='val/loss', until='val/loss_obj'), dict(best=None),
    dict(best='coco/bbox_mAP', evaluator=[VOC, COCO]), dict(best='mine/mAP', evaluator=dict(VOC, prefix='mine')),
    dict(best='old/coco/bbox_mAP', until='old/loss', others=dict(old=dict(evaluator=COCO))),
    dict(best='any/thing', evaluator=dict(type='NotRegistered')), dict(best='any/thing', loop='TheirLoop')])
def test_figures_that_come(given):
    check(**given)


@pytest.mark.parametrize(('given', 'line'), [
    (dict(best='coco/bbox_mAP'), "save_best is 'coco/bbox_mAP', and the names of what the validation gives begin with "
                                 "pascal_voc, val; set 'pascal_voc/mAP'"),
    (dict(best='pascal_voc/mAP', evaluator=[COCO]), "save_best .* begin with coco, val; set 'coco/bbox_mAP'"),
    (dict(best='pascal_voc/mAP', evaluator=dict(COCO, metric=['segm', 'bbox'])), "set 'coco/segm_mAP'"),
    (dict(best=['val/loss', 'mAP']), "save_best is 'mAP'"),
    (dict(until='coco/bbox_mAP'), "until.metric of stage 'head' is 'coco/bbox_mAP'"),
    (dict(plateau='coco/bbox_mAP'), "plateau.metric of stage 'head' is 'coco/bbox_mAP'"),
    (dict(stopping='coco/bbox_mAP'), "plan.early_stopping.metric is 'coco/bbox_mAP'"),
    (dict(best='val/loss', loop='ValLoop'), r"losses are measured by val_cfg=dict\(type='LossValLoop'\)$"),
    (dict(best='pascal_voc/mAP', rule='less'), "lowest pascal_voc/mAP .* set rule='greater'")])
def test_figures_that_never_come(given, line):
    with pytest.raises(UserError, match=line):
        check(**given)


@pytest.mark.parametrize(('best', 'rule', 'line'), [
    ('val/loss', 'greater', "keeps the checkpoint of the highest val/loss .rule='greater'.; set rule='less'"),
    (['pascal_voc/mAP', 'val/loss'], 'greater', 'the highest val/loss'),
    (['pascal_voc/mAP', 'val/loss'], ['greater', 'less'], None),
    (['pascal_voc/mAP', 'val/loss'], ['less', 'less'], 'the lowest pascal_voc/mAP'),
    (['pascal_voc/mAP', 'val/loss'], ['greater', 'greater'], 'the highest val/loss')])
def test_the_worst_is_no_best(best, rule, line):
    """One rule is for all figures, several are for one each."""
    with pytest.raises(UserError, match=line) if line else nullcontext():
        check(best, rule=rule)


def wired(**change):
    """Check a config whose training pipeline has three steps, two of them mixing, one by its default name."""
    pipeline = [dict(type='RandomFlip'), dict(type='StagedMix', name='mosaic'), dict(type='StagedMix')]
    cfg = Config(dict(dict(
        stages=[dict(STAGE, freeze_level=0, mosaic_prob=0.3, probs=dict(StagedMix=0.1, RandomFlip=0.5))],
        plan=dict(start='full', early_stopping=None), train_cfg=dict(type='StagedTrainLoop', val_interval=4),
        param_scheduler=[dict(type='StagedLR')], val_cfg=dict(type='ValLoop'),
        train_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(type='CocoDataset', pipeline=pipeline))),
        model={}), **change))
    check_wiring(cfg, Plan.from_cfg(cfg))


UNTIL = [dict(STAGE, until=dict(metric='mine/mAP', patience=2))]


@pytest.mark.parametrize(('change', 'line'), [
    ({}, None), (dict(param_scheduler=dict(type='StagedLR')), None), (dict(stages=UNTIL), None),
    (dict(stages=UNTIL, train_cfg=dict(type='StagedTrainLoop')), None),
    (dict(train_cfg=dict(type='Loop')), r"^train_cfg.type is 'Loop', .*; set train_cfg=dict\(type='StagedTrainLoop'\)"),
    (dict(train_cfg=None), 'train_cfg.type is None'),
    (dict(param_scheduler=[dict(type='StagedLR'), dict(type='LinearLR')]),
     r"^param_scheduler is \['StagedLR', 'LinearLR'\]: .*; set param_scheduler=\[dict\(type='StagedLR'\)\]$"),
    (dict(stages=UNTIL, train_cfg=dict(type='StagedTrainLoop', val_interval=5)),
     r"^stage 'head' ends by mine/mAP, and its 4 epochs see no validation \(train_cfg.val_interval=5\); .* take until"),
    (dict(stages=UNTIL, val_cfg=None), "stage 'head' ends by mine/mAP"),
    (dict(stages=[dict(STAGE, schedule='plateau', plateau=dict(metric='mine/mAP'))], val_cfg=None),
     "stage 'head' lowers its rate by mine/mAP, .* or take plateau out"),
    (dict(stages=[dict(STAGE, probs=dict(Flip=0))]),
     "stage 'head' gives a probability to Flip, and no .* there is RandomFlip, StagedMix, mosaic$"),
    (dict(stages=[dict(STAGE, freeze_level=0, mixup_prob=0.1)]), 'gives a probability to mixup')])
def test_what_a_plan_says_can_happen(change, line):
    with pytest.raises(UserError, match=line) if line else nullcontext():
        wired(**change)
