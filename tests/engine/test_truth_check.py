"""What preflight says of boxes and truth that mmdet's own loops would hold against each other in two spaces."""
import copy

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.truth_check import check_truth
from tests.support.doors import case_of, write_pictures
from tests.support.mmdet_detectors import YOLOV3

LOAD = dict(type='LoadAnnotations', with_bbox=True)
FIT = [dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='Pad', size_divisor=32)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('doors') / 'set'
    write_pictures(folder)
    return folder


def said(folder, model=None, kind='COCO', fit=None, metric='CocoMetric'):
    init_default_scope('mmdet')
    cfg = Config(copy.deepcopy(case_of(folder, kind, 'boxes before', 'usual').cfg.to_dict()))
    cfg.model = model or cfg.model
    cfg.test_evaluator = dict(type=metric)
    dataset = cfg.test_dataloader.dataset
    for leaf in dataset.get('datasets', [dataset]):
        leaf.pipeline = fit or leaf.pipeline
    return list(check_truth(cfg, ['train', 'test']))


@pytest.mark.parametrize('kind', ['COCO', 'VOC', 'concatenated'])
def test_a_letterbox_before_a_head_of_mmdet(folder, kind):
    with pytest.raises(UserError, match=r"YOLOV3 cannot take boxes out of a letterbox.*type='Resize'") as caught:
        said(folder, YOLOV3, kind)
    assert '\n' not in str(caught.value) and '.jpg of the test set (100x100) gets a border' in str(caught.value)
    assert said(folder, kind=kind) == []


def test_boxes_that_are_resized_with_the_picture(folder):
    load = dict(type='LoadImageFromFile')
    [line] = said(folder, fit=[load, LOAD, *FIT])
    assert 'put LoadAnnotations after Resize and Pad' in line
    with pytest.raises(UserError, match=r'VOCMetric would hold detections'):
        said(folder, fit=[load, LOAD, *FIT], metric='VOCMetric')
    assert said(folder, fit=[load, *FIT, LOAD], metric='VOCMetric') == []
