"""Figures that a config goes by, held against those its evaluators give, before anything is trained."""
import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.wiring import check_figures

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
