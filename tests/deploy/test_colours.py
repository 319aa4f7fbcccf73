"""Red is red in every picture the tools write, and in what the network is given."""
import json
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv import imread
from mmdet.apis import DetInferencer
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import MODELS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from mgdet_plugin.deploy.draw import draw_detections
from mgdet_plugin.deploy.media.detecting import Wish, detect_media
from mgdet_plugin.runs.mmdet_tools import run_tool
from tests.support.small_run import write_config

SIZE = (90, 60)
SQUARE = (30, 20, 60, 50)  # x1, y1, x2, y2 of what is red
NEVER = 1.0  # a score that nothing reaches, so that nothing is drawn over the square


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two pictures with a red square as a set whose classes have green colours, and a config with random weights."""
    folder = tmp_path_factory.mktemp('red')
    (folder / 'images').mkdir()
    pixels = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    pixels[SQUARE[1]:SQUARE[3], SQUARE[0]:SQUARE[2]] = 255, 0, 0
    x, y, right, bottom = SQUARE
    for index in range(2):
        Image.fromarray(pixels).save(folder / f'images/{index}.png')
    (folder / 'all.json').write_text(json.dumps(dict(
        images=[dict(id=index, file_name=f'{index}.png', width=SIZE[0], height=SIZE[1]) for index in range(2)],
        annotations=[dict(id=index, image_id=index, category_id=0, bbox=[x, y, right - x, bottom - y], area=900,
                          iscrowd=0) for index in range(2)],
        categories=[dict(id=index, name=name) for index, name in enumerate(('red', 'green', 'blue'))])))
    green = dict(classes=('red', 'green', 'blue'), palette=[(0, 200, 0), (0, 150, 0), (0, 100, 0)])
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs')]
    write_config(folder / 'cfg.py', folder, **{
        'work_dir': str(folder / 'work'), 'test_dataloader.dataset.metainfo': green,
        'train_dataloader.dataset.metainfo': green, 'train_dataloader.dataset.pipeline': load})
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(folder / 'cfg.py').model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'w.pth')
    return folder


def detected(folder):
    """A prediction on the first picture, along the square's edge."""
    found = InstanceData(bboxes=torch.tensor([SQUARE]).float(), scores=torch.tensor([0.9]), labels=torch.tensor([1]))
    return DetDataSample(pred_instances=found, metainfo=dict(
        img_path=str(folder / 'images/0.png'), img_id=0, ori_shape=SIZE[::-1]))


def by_draw(folder, out):
    draw_detections(str(folder / 'cfg.py'), str(folder / 'w.pth'), str(out / 'x.png'), 1, NEVER, truth=True)


def by_detect(folder, out):
    detect_media([str(folder / 'images/0.png')], folder / 'w.pth', folder / 'cfg.py', NEVER, Wish(out / 'found'))


def by_inferencer(folder, out):
    DetInferencer(str(folder / 'cfg.py'), str(folder / 'w.pth'), 'cpu', show_progress=False)(
        str(folder / 'images/0.png'), out_dir=str(out), pred_score_thr=NEVER)


def by_inferencer_from_an_array(folder, out, imports=('mgdet_plugin.models', )):
    infer = DetInferencer(str(folder / 'cfg.py'), str(folder / 'w.pth'), 'cpu', show_progress=False)
    infer.cfg.custom_imports = dict(imports=imports)
    image = imread(str(folder / 'images/0.png'))
    before = image.copy()
    drawn, = infer(image, out_dir=str(out), return_vis=True, pred_score_thr=NEVER)['visualization']
    assert np.array_equal(image, before)  # it is the caller's
    Image.fromarray(drawn).save(out / 'returned.png')


def by_hook(folder, out):
    """What ``--show-dir`` switches on, and the same hook in validation."""
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='red', save_dir=str(out),
                                        vis_backends=[dict(type='LocalVisBackend')]))
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[(0, 200, 0)] * 2)
    hook = DetVisualizationHook(draw=True, interval=1, test_out_dir='shown')
    hook._visualizer = visualizer
    runner = SimpleNamespace(work_dir=str(out), timestamp='', iter=0)
    hook.after_test_iter(runner, 0, {}, [detected(folder)])
    hook.after_val_iter(runner, 0, {}, [detected(folder)])
    assert len(list(out.rglob('*.png'))) == 2


def by_browse_dataset(folder, out):
    run_tool('analysis_tools/browse_dataset', [str(folder / 'cfg.py'), '--output-dir', str(out), '--not-show'])


def by_analyze_results(folder, out):
    samples = [dict(detected(folder).to_dict(), img_id=index) for index in range(2)]
    (out / 'found.pkl').write_bytes(pickle.dumps(samples))
    run_tool('analysis_tools/analyze_results', [str(folder / 'cfg.py'), str(out / 'found.pkl'), str(out / 'shown'),
                                                '--topk', '1'])


def test_the_inferencer_warns_of_no_backend_of_a_run(folder):
    """A run's visualizer writes into the run's folder, and here is none."""
    with warnings.catch_warnings(record=True) as said:
        infer = DetInferencer(str(folder / 'cfg.py'), str(folder / 'w.pth'), 'cpu', show_progress=False)
    assert infer.visualizer is not None and not [each for each in said if 'Failed to add' in str(each.message)]


@pytest.mark.parametrize('door', [by_draw, by_detect, by_inferencer, by_inferencer_from_an_array, by_hook,
                                  by_browse_dataset, by_analyze_results])
def test_red_is_red(door, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    door(folder, tmp_path)
    pictures = [path for ending in ('png', 'jpg') for path in tmp_path.rglob(f'*.{ending}')]
    assert pictures
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
        red, blue = (pixels[..., strong] - pixels[..., [1, other]].max(-1) > 150 for strong, other in ((0, 2), (2, 0)))
        share = 900 / (SIZE[0] * SIZE[1])  # of the picture; edges and texts take some of it
        assert 0.4 * share < red.mean() < 1.1 * share and not blue.any(), path


def test_the_network_sees_rgb_by_path_and_by_array(folder):
    """A path, and an array as mmdet documents it (BGR), give the same picture and the same detections."""
    path = str(folder / 'images/0.png')
    infer = DetInferencer(str(folder / 'cfg.py'), str(folder / 'w.pth'), 'cpu', show_progress=False)
    seen = []
    infer.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first, second = (infer(source)['predictions'][0] for source in (path, imread(path)))
    assert first['bboxes'] and first == second
    assert torch.equal(*seen) and seen[0][0, :, 32, 32].tolist() == [1, 0, 0]


def test_an_array_is_drawn_as_mmdet_does_with_a_config_that_does_not_import_this_package(folder, tmp_path):
    by_inferencer_from_an_array(folder, tmp_path, imports=('mmdet.models', ))
    middle = np.asarray(Image.open(tmp_path / 'returned.png'))[35, 45]
    assert middle.tolist() == [0, 0, 255]


def test_an_inferencer_takes_the_name_of_a_config():
    infer = DetInferencer('mgdet_nano_stage1', device='cpu', show_progress=False)
    assert infer.cfg.filename.endswith('mgdet_nano_stage1.py') and infer.model.bbox_head.num_classes == 10
