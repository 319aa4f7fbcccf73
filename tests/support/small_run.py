"""A run small enough for a test: stage 1 of the model5 config at a sixteenth of the width on a few drawn images."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from tests.support.fork_server import ROOT, shared_server
from tests.support.keras_files import TINY_OPTIONS

CLASSES = ('red', 'green', 'blue')
SIDE = 64


def make_dataset(folder: Path, count: int = 8, seed: int = 0) -> Path:
    """Coloured rectangles on grey noise as a COCO set; one box of zero area, as real sets have them."""
    rng = np.random.RandomState(seed)
    (folder / 'images').mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    for image in range(count):
        pixels = rng.randint(100, 140, (60, 80, 3)).astype(np.uint8)
        for label in rng.permutation(3)[:2]:
            w, h = rng.randint(12, 36, 2)
            x, y = rng.randint(0, 80 - w), rng.randint(0, 60 - h)
            pixels[y:y + h, x:x + w] = np.eye(3)[label] * 255
            annotations.append(box(len(annotations), image, label, [x, y, w, h]))
        Image.fromarray(pixels).save(folder / 'images' / f'{image}.png')
    annotations.append(box(len(annotations), 0, 1, [5, 5, 0, 10]))
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=80, height=60) for i in range(count)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)], annotations=annotations)
    (folder / 'all.json').write_text(json.dumps(content))
    return folder


def box(index: int, image: int, label: int, xywh: list) -> dict[str, Any]:
    """One COCO annotation."""
    x, y, w, h = map(int, xywh)
    return dict(id=index, image_id=image, category_id=int(label), bbox=[x, y, w, h], area=w * h, iscrowd=0)


def write_config(path: Path, data: Path, base: str = 'mgdet_model5_stage1.py', **options: Any) -> Path:
    """The base config with the tiny model and the drawn images, letterboxed to 64 pixels."""
    cfg = Config.fromfile(ROOT / 'configs' / base)
    cfg.merge_from_dict({**TINY_OPTIONS, 'model.bbox_head.num_classes': 3})
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=f'{data}/', ann_file='all.json', data_prefix=dict(img='images/'),
                              metainfo=dict(classes=CLASSES))
        for step in loader.dataset.pipeline:
            if step.type == 'Letterbox':
                step.scale = (SIDE, SIDE)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = str(data / 'all.json')
    cfg.merge_from_dict({'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1,
                         'model.test_cfg.score_thr': 0.001,
                         'randomness': dict(seed=1), 'evaluate': False,
                         **options})
    cfg.dump(path)
    return path


def run_tool(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A tool in a process of its own, as a person calls it."""
    return shared_server().run([ROOT / 'tools' / f'{name}.py', *arguments], cwd, timeout=300)
