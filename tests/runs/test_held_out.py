"""Weights on test sets: what is refused, and that one set's figures do not depend on another's."""
import json

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.held_out import HeldOut
from tests.support.small_run import make_dataset, write_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('held_out')
    write_config(folder / 'config.py', make_dataset(folder / 'data'), 'mgdet_model5_stage1.py')
    return folder


def load(folder):
    cfg = Config.fromfile(folder / 'config.py')
    cfg.model.bbox_head.loss.class_weights = None
    return cfg


def test_sets_are_measured_apart_and_the_weights_given_count(folder):
    torch.manual_seed(0)
    tests = HeldOut.of_tests(dict(one=load(folder), two=load(folder)), device='cpu')
    first = {name: tensor.clone() for name, tensor in tests.model.state_dict().items()}
    other = {name: tensor + 0.05 if 'predict_convs' in name else tensor for name, tensor in first.items()}
    found = tests.measure(first)
    assert list(found) == list(tests.domains) == ['one', 'two'] and found['one'] == found['two']
    assert found['one']['loss'] > 0 and tests.measure(other)['one']['loss'] != found['one']['loss']
    assert tests.measure(first) == found


def test_a_set_of_several_and_several_metrics(folder):
    """A concatenated set, part of it repeated, by COCO's metric from the samples themselves and by VOC's."""
    cfg = load(folder)
    leaf = cfg.test_dataloader.dataset
    leaf.pipeline[-1].meta_keys = (*leaf.pipeline[-1].meta_keys, 'instances')
    whole = load(folder)
    whole.test_dataloader.dataset.indices = 2
    content = json.loads((folder / 'data/all.json').read_text())
    for image in range(2):
        part = dict(content, images=[content['images'][image]],
                    annotations=[each for each in content['annotations'] if each['image_id'] == image])
        (folder / f'data/{image}.json').write_text(json.dumps(part))
    halves = [dict(leaf, ann_file=f'{image}.json') for image in range(2)]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        halves[0], dict(type='RepeatDataset', times=1, dataset=halves[1])])
    cfg.test_evaluator = [dict(type='CocoMetric'), dict(type='VOCMetric', iou_thrs=[0.5, 0.75])]
    torch.manual_seed(0)
    tests = HeldOut.of_tests(dict(whole=whole, parts=cfg), device='cpu')
    found = tests.measure(tests.model.state_dict())
    assert tests.mean_aps('parts') == ['coco/bbox_mAP', 'pascal_voc/mAP'] and tests.mean_aps('whole') == [
        'coco/bbox_mAP']
    assert found['parts']['loss'] == pytest.approx(found['whole']['loss']) and 'pascal_voc/AP75' in found['parts']


def test_what_is_missing_or_does_not_fit(folder):
    tests = HeldOut.of_tests(dict(one=load(folder)), device='cpu')
    with pytest.raises(UserError, match=r'absent\.pth'):
        tests.read(str(folder / 'absent.pth'))
    torch.save(dict(state_dict={'other': torch.zeros(1)}), folder / 'foreign.pth')
    with pytest.raises(UserError, match=r'foreign\.pth'):
        tests.read(str(folder / 'foreign.pth'))
    cfg = load(folder)
    cfg.test_dataloader.dataset.ann_file = 'nowhere.json'
    with pytest.raises(UserError, match=r'nowhere\.json'):
        HeldOut.of_tests(dict(one=cfg))
