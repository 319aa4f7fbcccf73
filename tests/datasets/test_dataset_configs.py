"""The dataset configs: every pipeline runs, boxes land where the pixels land, inference needs no annotations."""
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS
from mmengine.config import Config
from PIL import Image

from mgdet_plugin.datasets import DIGIT_CLASSES, digits, ensure_embedded_data

CONFIGS = Path(__file__).parents[2] / 'configs/_base_/datasets'
NAMES = ('coco_letterbox', 'digits_source', 'digits_target')


def load(name: str) -> Config:
    """A dataset config by name."""
    return Config.fromfile(CONFIGS / f'{name}.py')


def sample(tmp_path: Path) -> dict[str, Any]:
    """What a dataset hands to the pipeline: an image of 100 x 50 pixels with two boxes, one degenerate."""
    Image.fromarray(np.full((50, 100, 3), 200, np.uint8)).save(tmp_path / 'a.png')
    instances = [dict(bbox=box, bbox_label=label, ignore_flag=0)
                 for label, box in ((4, [20, 10, 60, 40]), (5, [30, 30, 30, 40]))]
    return dict(img_path=str(tmp_path / 'a.png'), img_id=7, height=50, width=100, instances=instances)


@pytest.mark.parametrize('name', NAMES)
def test_validation_boxes_stay_in_pixels_of_the_picture(name: str, tmp_path: Path) -> None:
    cfg = load(name)
    side = cfg.img_scale[0]
    packed = Compose(cfg.val_dataloader.dataset.pipeline)(sample(tmp_path))
    truth, meta = packed['data_samples'].gt_instances, packed['data_samples'].metainfo
    assert packed['inputs'].shape == (3, side, side) and packed['inputs'].dtype == torch.uint8
    scale, top = side / 100, side / 4
    assert truth.bboxes.tensor.tolist() == [[20, 10, 60, 40]]
    assert truth.labels.tolist() == [4]
    assert (meta['ori_shape'], meta['img_shape'], meta['scale_factor']) == ((50, 100), (side, side), (scale, scale))
    assert meta['pad_param'].tolist() == [top, top, 0, 0]


@pytest.mark.parametrize('name', NAMES)
def test_training_pipeline(name: str, tmp_path: Path) -> None:
    cfg = load(name)
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    assert ('RandomFlip' in str(pipeline)) == (name == 'coco_letterbox')  # digits are not mirrored
    for _ in range(5):
        packed = pipeline(sample(tmp_path))
        assert packed['inputs'].shape == (3, *cfg.img_scale)
        assert packed['data_samples'].gt_instances.labels.tolist() == [4]
        assert 'pad_param' in packed['data_samples'].metainfo


def test_training_keeps_images_that_lose_all_boxes(tmp_path: Path) -> None:
    empty = sample(tmp_path)
    empty['instances'] = [dict(bbox=[0, 0, 1, 1], bbox_label=0, ignore_flag=0)]
    packed = Compose(load('digits_source').train_dataloader.dataset.pipeline)(empty)
    assert packed['data_samples'].gt_instances.bboxes.tensor.shape == (0, 4)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('as_array', [False, True])
def test_inference_runs_the_test_pipeline(name: str, as_array: bool, tmp_path: Path) -> None:
    cfg = load(name)
    pipeline = DetInferencer.__new__(DetInferencer)._init_pipeline(cfg)
    path = sample(tmp_path)['img_path']
    packed = pipeline(np.full((50, 100, 3), 200, np.uint8) if as_array else path)
    assert packed['inputs'].shape == (3, *cfg.img_scale)
    assert packed['data_samples'].metainfo['pad_param'].tolist() == [cfg.img_scale[0] / 4] * 2 + [0, 0]


def test_coco_is_read_as_the_recipe_says() -> None:
    cfg = load('coco_letterbox')
    assert cfg.train_dataloader.batch_size == 48
    assert cfg.img_scale == (608, 608)
    paths = [cfg[f'{split}_dataloader'].dataset.data_root + cfg[f'{split}_dataloader'].dataset.ann_file
             for split in ('train', 'val', 'test')]
    assert paths == [f'data/coco/annotations/instances_{part}2017.json' for part in ('train', 'val', 'val')]
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == paths[1]


@pytest.mark.parametrize('domain', ['source', 'target'])
def test_digits_are_read_with_their_labels(domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, 'DOMAINS', {
        name: dataclasses.replace(each, counts=(6, 2, 2)) for name, each in digits.DOMAINS.items()})
    cfg = load(f'digits_{domain}')
    ensure_embedded_data(cfg)
    shown = set()
    for split in ('train', 'val', 'test'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert dataset.metainfo['classes'] == DIGIT_CLASSES
        assert Path(cfg[f'{split}_dataloader'].dataset.data_root).name == domain
        for index in range(len(dataset)):
            shown |= set(dataset[index]['data_samples'].gt_instances.labels.tolist())
    assert shown <= set(digits.DOMAINS[domain].digits) and len(shown) > 3
    for split in ('val', 'test'):
        assert cfg[f'{split}_evaluator'].ann_file == f'data/mgdet_digits/{domain}/{split}.json'
