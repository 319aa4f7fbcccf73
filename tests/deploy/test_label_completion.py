"""Labels completed by weights: what is added, what is left as it is, and what is refused."""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.apis import inference_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.label_completion import complete_labels, with_found
from tests.support.mmdet_detectors import YOLOV3
from tests.support.small_run import CLASSES, make_dataset, write_config

RED, GREEN, BLUE = range(3)


def test_sure_boxes_are_objects_and_unsure_ones_ignored():
    """Own labels stay, what lies on one is left out, classes come in the config's order, a box ends at the picture."""
    content = dict(
        info='mine', images=[dict(id=7, file_name='a.png', width=100, height=80), dict(id=3, file_name='b.png', width=9,
                                                                                     height=9)],
        categories=[dict(id=5, name='raccoon', supercategory='animal'), dict(id=2, name='blue')],
        annotations=[dict(id=40, image_id=7, category_id=5, bbox=[10, 10, 20, 20], area=400),
                     dict(id='x', image_id=7, category_id=5, bbox=[60, 0, 40, 80], area=3200, iscrowd=1)])
    before = copy.deepcopy(content)
    found = {7: [([-4, 50, 20.004, 70], RED, 0.3),
                 ([30, 60, 50, 200], GREEN, 0.9),
                 ([31, 60, 50, 79], RED, 0.7),  # on the one before
                 ([11, 10, 31, 31], RED, 0.8),  # on a label
                 ([70, 10, 80, 20], RED, 0.8),  # inside a region of many
                 ([30, 10, 50, 30], BLUE, 0.5),
                 ([100, 20, 120, 40], RED, 0.9)]}  # outside
    completed = with_found(content, CLASSES, found, 0.5)
    assert content == before
    assert completed.content['info'] == 'mine' and completed.content['images'] == content['images']
    assert completed.content['categories'] == [
        dict(id=1, name='red'), dict(id=2, name='green'), dict(id=3, name='blue'),
        dict(id=4, name='raccoon', supercategory='animal')]
    own, added = completed.content['annotations'][:2], completed.content['annotations'][2:]
    assert own == [{**each, 'category_id': 4} for each in content['annotations']]
    assert added == [
        dict(id=41, image_id=7, category_id=2, bbox=[30, 60, 20, 20], area=400, iscrowd=0, score=0.9, source='weights'),
        dict(id=42, image_id=7, category_id=3, bbox=[30, 10, 20, 20], area=400, iscrowd=0, score=0.5, source='weights'),
        dict(id=43, image_id=7, category_id=1, bbox=[0, 50, 20, 20], area=400, iscrowd=1, score=0.3, source='weights')]
    assert completed.line() == ('2 images with 2 annotations of their own: 2 objects added, 1 unsure ones to be '
                                'ignored (blue 1 and 0; green 1 and 0; red 0 and 1)')


@pytest.fixture(scope='module')
def sets(tmp_path_factory) -> Path:
    """A folder with drawn images whose annotations in new.json have the label of red objects alone."""
    folder = tmp_path_factory.mktemp('complete')
    data = make_dataset(folder / 'data', 3)
    content = json.loads((data / 'all.json').read_text())
    content['annotations'] = [each for each in content['annotations'] if each['category_id'] == RED]
    content['categories'] = [dict(id=0, name='red')]
    (folder / 'new.json').write_text(json.dumps(content))
    return folder


def weights(folder: Path, name: str, model: dict[str, Any] | None = None, meta: dict[str, Any] | None = None) -> Config:
    """A config and random weights in a folder, of a model or the small one; its config."""
    config = write_config(folder / f'{name}.py', folder / 'data', work_dir=str(folder))
    cfg = Config.fromfile(config)
    if model is not None:
        cfg.model = model
        steps = cfg.test_dataloader.dataset.pipeline
        place = next(index for index, step in enumerate(steps) if step.type == 'Letterbox')
        steps[place:place + 1] = [dict(type='Resize', scale=(64, 64), keep_ratio=True),
                                  dict(type='Pad', size_divisor=32)]
        cfg.dump(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta=meta or {}), folder / f'{name}.pth')
    return Config.fromfile(config)


@pytest.mark.parametrize('model', [None, {**YOLOV3, 'test_cfg': dict(
    nms_pre=100, min_bbox_size=0, score_thr=0.9, conf_thr=0.005, nms=dict(type='nms', iou_threshold=0.45),
    max_per_img=20)}], ids=['multigrid', 'yolov3'])
def test_boxes_are_those_of_mmdets_own_inference_in_pixels_of_the_picture(model, sets):
    name = 'multigrid' if model is None else 'yolov3'
    cfg = weights(sets, name, model)
    before = (sets / 'new.json').read_bytes()
    completed = complete_labels(sets / f'{name}.py', str(sets / f'{name}.pth'), sets / 'new.json', sets / 'out.json',
                                score_thr=0.3, unsure=0.02)
    written = json.loads((sets / 'out.json').read_text())
    assert (sets / 'new.json').read_bytes() == before and written == completed.content
    added = [each for each in written['annotations'] if each.get('source') == 'weights']
    assert added and {each['category_id'] for each in added} <= {2, 3}  # red is labelled
    assert completed.added.total() + completed.unsure.total() == len(added)
    cfg.model.test_cfg.score_thr = 0.02
    detector = MODELS.build(cfg.model)
    detector.load_state_dict(torch.load(sets / f'{name}.pth')['state_dict'])
    detector.cfg = cfg
    for image in written['images']:
        found = inference_detector(detector.eval(), str(sets / 'data/images' / image['file_name'])).pred_instances
        for each in added:
            if each['image_id'] != image['id']:
                continue
            x, y, width, height = each['bbox']
            same = (found.labels == each['category_id'] - 1) & ((found.scores - each['score']).abs() < 1e-3)
            ours = torch.tensor([x, y, x + width, y + height])
            inside = found.bboxes[same].clamp(min=0).minimum(torch.tensor([80., 60., 80., 60.]))
            assert ((inside - ours).abs().amax(-1) < 0.05).any()
            assert each['iscrowd'] == int(each['score'] < 0.3)
    again = complete_labels(sets / f'{name}.py', str(sets / f'{name}.pth'), sets / 'out.json', sets / 'again.json',
                            score_thr=0.3, unsure=0.02)
    assert [each | dict(category_id=0) for each in again.content['annotations']] == \
        [each | dict(category_id=0) for each in written['annotations']]


def test_classes_the_weights_do_not_know_are_not_looked_for(sets):
    weights(sets, 'some', meta=dict(new_classes=['blue']))
    completed = complete_labels(sets / 'some.py', str(sets / 'some.pth'), sets / 'new.json', sets / 'out.json',
                                unsure=0.02)
    assert set(completed.added | completed.unsure) == {'green'}
    weights(sets, 'all', meta=dict(new_classes=[1, 2]))
    with pytest.raises(UserError, match=r'new\.json has labels of every class that the weights know \(red\)'):
        complete_labels(sets / 'all.py', str(sets / 'all.pth'), sets / 'new.json', sets / 'all.json')
    assert not (sets / 'all.json').exists()


@pytest.mark.parametrize(('arguments', 'options', 'cause'), [
    (('w.py', 'w.pth', 'new.json', 'new.json'), {}, r'new\.json: it is the file to read from'),
    (('w.py', 'w.pth', 'none.json', 'o.json'), {}, r'a COCO file that is there, got .*none\.json'),
    (('w.py', 'none.pth', 'new.json', 'o.json'), {}, r'none\.pth are not there'),
    (('w.py', 'w.pth', 'new.json', 'o.json'), dict(score_thr=1.5), r'at most 1, got 1\.5'),
    (('w.py', 'w.pth', 'new.json', 'o.json'), dict(unsure=0.6), r'that of a sure one \(0\.5\), got 0\.6'),
    (('w.py', 'w.pth', 'new.json', 'o.json'), dict(images='nowhere'), r'data_prefix nowhere is not there'),
    (('w.py', 'w.pth', 'broken.json', 'o.json'), {}, r'broken\.json is not valid JSON'),
    (('w.py', 'w.pth', 'lost.json', 'o.json'), {}, r'1 of 3 images named in .*lost\.json are not in'),
    (('w.py', 'w.pth', 'new.json', 'o.json'), dict(cfg_options={'model.bbox_head.num_classes': 4}),
     r'the test set has 3 classes, model\.bbox_head\.num_classes is 4')])
def test_a_refusal_is_one_line_and_leaves_nothing(arguments, options, cause, sets):
    if not (sets / 'w.pth').exists():
        weights(sets, 'w')
        (sets / 'broken.json').write_text('{')
        lost = json.loads((sets / 'new.json').read_text())
        lost['images'][1]['file_name'] = 'gone.png'
        (sets / 'lost.json').write_text(json.dumps(lost))
    config, checkpoint, source, out = (sets / each for each in arguments)
    before = (sets / 'new.json').read_bytes()
    with pytest.raises(UserError, match=cause):
        complete_labels(config, str(checkpoint), source, out, **options)
    assert not (sets / 'o.json').exists() and (sets / 'new.json').read_bytes() == before
