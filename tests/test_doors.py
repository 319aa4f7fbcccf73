"""Through every door, out of every format and shape: the same boxes, truth and figures, in pixels of the picture."""
import copy
import pickle
import warnings
from unittest.mock import Mock

import numpy as np
import pytest
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation.metrics import DumpDetResults
from mmdet.registry import MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import ConfigDict
from mmengine.evaluator import Evaluator
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.preflight import _views
from tests.support.doors import (
    DOORS,
    FORMATS,
    META,
    MODEL,
    ORDERS,
    PIPELINES,
    SIZES,
    Kept,
    case_of,
    detector,
    distance,
    figures,
    reference,
    settled,
    true_boxes,
    truth,
    write_pictures,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('doors') / 'set'
    write_pictures(folder)
    return folder


@pytest.fixture(scope='module')
def expected(folder):
    with settled():
        found = reference(folder)
    assert found[1]['pascal_voc/mAP'] > 0.5 and found[1]['coco/bbox_mAP_50'] > 0.5  # something is detected
    return found


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('door', DOORS)
def test_every_door(folder, expected, door, kind):
    for order, keys in PIPELINES:
        off = figures(door, case_of(folder, kind, order, keys), expected)
        assert off.boxes < 1e-3 and off.truth < 1e-3 and off.ap < 1e-6 and off.loss < 1e-5, (order, keys, off)


@pytest.mark.parametrize('order', ORDERS)
def test_the_way_of_the_test_script(folder, expected, order, tmp_path):
    """What ``--show-dir`` draws and what ``--out`` writes."""
    case = case_of(folder, 'VOC', order, 'usual')
    visualizer = DetLocalVisualizer.get_instance(f'doors {order}')
    visualizer.dataset_meta = META
    hook = DetVisualizationHook(draw=True, test_out_dir='drawn')
    hook._visualizer = visualizer
    runner, dump = Mock(work_dir=str(tmp_path), timestamp=''), DumpDetResults(out_file_path=str(tmp_path / 'out.pkl'))
    with settled():
        for index, batch in enumerate(case.loader):
            outputs = detector().test_step(batch)
            dump.process(batch, [each.to_dict() for each in outputs])
            for each in outputs:
                hook.test_out_dir = 'drawn'  # mmdet joins it to itself with each batch
                hook.after_test_iter(runner, index, batch, [each])
        dump.evaluate(3)
    content = (tmp_path / 'out.pkl').read_bytes()
    assert b'mgdet_plugin' not in content
    for each in pickle.loads(content):
        name = each['img_path'].split('/')[-1][:-4]
        assert distance(each['pred_instances']['bboxes'], expected[0][name][0]) < 1e-3
        assert type(each['scale_factor']) is tuple and len(each['pad_param']) == 4
        drawn = np.asarray(Image.open(tmp_path / 'drawn' / f'{name}.jpg')).astype(int)
        red, green, blue = drawn[:, :drawn.shape[1] // 2].transpose(2, 0, 1)  # truth is drawn at the left
        colours = (green > 150) & (red < 120) & (blue < 120), (green > 150) & (red > 150) & (blue < 120)
        for (x1, y1, x2, y2), label, ignored in zip(*truth()[name]):
            x, y, mark = (x1 + x2) // 2, (y1 + y2) // 2, colours[label]
            edges = (mark[max(y1 - 2, 0):y1 + 3, x], mark[y2 - 2:y2 + 3, x], mark[y, max(x1 - 2, 0):x1 + 3],
                     mark[y, x2 - 2:x2 + 3])
            assert ignored or all(edge.any() for edge in edges), (name, label)


def test_views_of_another_size_are_said(folder):
    """A test pipeline of one's own leaves the inherited views as they are."""
    cfg = case_of(folder, 'COCO', ORDERS[0], 'usual').cfg
    views = [[dict(type='Letterbox', scale=(64, 64)), dict(type='Letterbox', scale=(96, 64))]]
    cfg.tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)]
    [line] = _views(cfg)
    assert line.startswith('--tta looks at 64x64, 96x64 alone, the test set at ')
    scale = next(step['scale'] for step in cfg.test_dataloader.dataset.pipeline if step['type'] == 'Letterbox')
    views[0].append(dict(type='Letterbox', scale=scale))
    cfg.tta_pipeline[1]['transforms'] = views
    assert not list(_views(cfg))
    cfg.tta_pipeline = None
    with warnings.catch_warnings(record=True) as said:
        assert [line] != [*_views(cfg)] == ['--tta looks at each picture and its mirror image: the config has no '
                                            'tta_pipeline that names other views']
        warnings.warn('Cannot find ``tta_pipeline`` in config, we will set it as default.', stacklevel=1)
    assert not said  # of mmdet's script


FLIPS = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]


def augmented(case, steps, kind='MultiGridTTA', test_cfg=MODEL['test_cfg'], start=-1, **options):
    """Yields each batch and what a model finds in it with ``TestTimeAug`` in place of the pipeline from ``start``."""
    case.cfg.test_dataloader.dataset.pipeline[start:] = [dict(type='TestTimeAug', transforms=steps)]
    model = MODELS.build(ConfigDict(type=kind, module=dict(MODEL, test_cfg=test_cfg), **options)).eval()
    model.module.load_state_dict(detector().state_dict())
    with settled():
        for batch in case.loader:
            yield batch, model.test_step(batch)


@pytest.mark.parametrize('kind', ['diou', 'wbf'])
@pytest.mark.parametrize('order', ORDERS)
def test_one_view_that_is_not_changed_finds_what_is_found_without(folder, order, kind):
    """Square, wide and tall pictures; what suppression leaves must not be suppressed again."""
    test_cfg = dict(MODEL['test_cfg'], score_thr=0.001, nms=dict(type=kind, iou_threshold=0.6))
    plain = MODELS.build(ConfigDict(MODEL, test_cfg=test_cfg)).eval()
    plain.load_state_dict(detector().state_dict())
    with settled():
        without = [each for batch in case_of(folder, 'COCO', order, 'usual').loader for each in plain.test_step(batch)]
    views = [[dict(type='RandomFlip', prob=0.0)], [dict(type='PackDetInputs')]]
    case = case_of(folder, 'COCO', order, 'usual')
    found = [each for _, some in augmented(case, views, test_cfg=test_cfg) for each in some]
    assert len(found) == len(without) == 3 and all(len(each.pred_instances) > 3 for each in without)
    for one, other in zip(found, without):
        assert distance(one.pred_instances.bboxes, other.pred_instances.bboxes) <= 1e-3
        assert distance(one.pred_instances.scores, other.pred_instances.scores) <= 1e-6
        assert one.pred_instances.labels.tolist() == other.pred_instances.labels.tolist()


@pytest.mark.parametrize(('fit', 'keys', 'line'), [
    ([dict(type='Letterbox', scale=(128, 96))], ('img_path', 'ori_shape', 'img_shape'),
     r"square\.jpg lack scale_factor, .* add 'scale_factor' to meta_keys of PackDetInputs$"),
    ([dict(type='Resize', scale=(128, 96), keep_ratio=True), dict(type='Pad', size=(160, 160))],
     ('img_path', 'ori_shape', 'img_shape', 'scale_factor'),
     r"square\.jpg do not say where in the input of 160x160 its 96x96 picture lies; add 'pad_param'")])
def test_views_whose_metas_lack_the_padding_are_refused(folder, fit, keys, line):
    case = case_of(folder, 'COCO', ORDERS[0], 'usual')
    with pytest.raises(UserError, match=line):
        next(augmented(case, [[step] for step in fit] + [[dict(type='PackDetInputs', meta_keys=keys)]], start=1))


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('tta', ['DetTTAModel', 'MultiGridTTA'])
def test_test_time_augmentation(folder, expected, tta, order):
    """mmdet's own views: the last step replaced. (Its model gives the truth of the mirrored view.)"""
    case = case_of(folder, 'COCO', order, 'usual')
    options = dict(tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)) if tta[0] == 'D' else {}
    evaluator = Evaluator(copy.deepcopy(case.cfg.test_evaluator))
    evaluator.dataset_meta = META
    Kept.seen.clear()
    for batch, found in augmented(case, [FLIPS, [dict(type='PackDetInputs')]], tta, **options):
        evaluator.process(found, batch)
    with settled():
        metrics = evaluator.evaluate(len(SIZES))
    assert metrics['coco/bbox_mAP_50'] >= expected[1]['coco/bbox_mAP_50'] - 0.02
    for sample in Kept.seen if tta == 'MultiGridTTA' else ():
        name = sample['img_path'].split('/')[-1][:-4]
        assert distance(sample['gt_instances']['bboxes'], true_boxes(name)) < 1e-3
