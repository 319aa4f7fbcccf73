"""Small COCO and VOC sets on disk, changed by each test to be wrong in one way."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

import mgdet_plugin.datasets  # noqa: F401  (before the tests import mmdet: it makes mmdet importable)


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Run each test in mmdet's registry scope, as every config of the plugin does."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def coco_content() -> dict[str, Any]:
    """Two images, three categories, four sound boxes."""
    boxes = [(1, 1, [10, 10, 20, 30]), (1, 2, [40, 5, 10, 10]), (2, 2, [0, 0, 64, 48]), (2, 3, [5, 5, 1, 1])]
    return {
        'images': [{'id': i, 'file_name': f'{i}.jpg', 'width': 64, 'height': 48} for i in (1, 2)],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(('cat', 'dog', 'cow'), 1)],
        'annotations': [{'id': i, 'image_id': image, 'category_id': category, 'bbox': box, 'area': box[2] * box[3],
                         'iscrowd': 0} for i, (image, category, box) in enumerate(boxes)],
    }


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Config]:
    """Write a COCO set, changed by ``edit``, and return a config that reads it for train and val."""

    def make(edit: Callable[[dict[str, Any]], object] = lambda content: None,
             classes: tuple[str, ...] = ('cat', 'dog', 'cow')) -> Config:
        content = coco_content()
        edit(content)
        (tmp_path / 'img').mkdir(exist_ok=True)
        for name in ('1.jpg', '2.jpg'):
            Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / 'img' / name)
        (tmp_path / 'ann.json').write_text(json.dumps(content))
        dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='ann.json', data_prefix=dict(img='img/'),
                       metainfo=dict(classes=classes),
                       pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                                 dict(type='DropDegenerateBoxes')])
        return Config(dict(train_dataloader=dict(dataset=dataset),
                           val_dataloader=dict(dataset=dict(dataset, test_mode=True)),
                           val_evaluator=dict(type='CocoMetric', ann_file=str(tmp_path / 'ann.json'))))

    return make


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Config]:
    """Write a VOC set of one image with given objects ``(name, (xmin, ymin, xmax, ymax))`` and return its config."""

    def make(*objects: tuple[str, tuple[object, ...]], drops: bool = True, size: str = '64 48') -> Config:
        for folder in ('Annotations', 'JPEGImages'):
            (tmp_path / folder).mkdir()
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / 'JPEGImages' / 'a.jpg')
        width, height = size.split()
        text = ''.join(
            f'<object><name>{name}</name><bndbox>' + ''.join(
                f'<{side}>{value}</{side}>' for side, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
            + '</bndbox></object>' for name, box in objects)
        (tmp_path / 'Annotations' / 'a.xml').write_text(
            f'<annotation><size><width>{width}</width><height>{height}</height></size>{text}</annotation>')
        (tmp_path / 'list.txt').write_text('a\n')
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
        dataset = dict(type='VOCDataset', data_root=str(tmp_path), ann_file='list.txt',
                       data_prefix=dict(sub_data_root=''), metainfo=dict(classes=('cat', 'dog')),
                       pipeline=pipeline + [dict(type='DropDegenerateBoxes')] * drops)
        return Config(dict(train_dataloader=dict(dataset=dataset)))

    return make
