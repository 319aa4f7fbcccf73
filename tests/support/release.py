"""A tiny run of a build of the package, kept so that later builds resume, evaluate and judge it to the same figures.

``cd CHECKOUT && PYTHONPATH=$PWD python /path/to/tests/support/release.py OUT``, in a checkout of that build, writes
OUT: the config as it was dumped, the checkpoint of each epoch (gzip: the frozen weights have few values),
``guard.json`` and the figures. So nothing here is imported from the tests.
"""
from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

import mgdet_plugin  # noqa: F401  mmdet cannot be imported without

CLASSES = ('red', 'green')
DIVISOR = 16  # of the model's widths
EPOCHS = 2


def draw(folder: Path) -> None:
    """Eight pictures of two coloured rectangles, the same everywhere."""
    rng = np.random.RandomState(7)
    (folder / 'img').mkdir(parents=True)
    images, annotations = [], []
    for image in range(8):
        pixels = rng.randint(100, 140, (60, 80, 3)).astype(np.uint8)
        for label in (0, 1):
            w, h = map(int, rng.randint(14, 30, 2))
            x, y = int(rng.randint(40 * label, 40 * label + 10)), int(rng.randint(0, 60 - h))
            pixels[y:y + h, x:x + w] = np.eye(3)[label] * 255
            annotations.append(dict(id=len(annotations) + 1, image_id=image + 1, category_id=label, bbox=[x, y, w, h],
                                    area=w * h, iscrowd=0))
        Image.fromarray(pixels).save(folder / 'img' / f'{image}.png')
        images.append(dict(id=image + 1, file_name=f'{image}.png', width=80, height=60))
    categories = [dict(id=each, name=name) for each, name in enumerate(CLASSES)]
    (folder / 'all.json').write_text(json.dumps(dict(images=images, categories=categories, annotations=annotations)))


def release_config(configs: Path) -> Config:
    """The staged config of that build, small, on the pictures in ``set`` of the working folder."""
    cfg = Config.fromfile(configs / 'mgdet_model5_staged.py')
    cfg.merge_from_dict({
        'model.backbone.type': 'ScaledDarknet', 'model.backbone.widen_factor': 1 / DIVISOR,
        'model.neck.in_channels': (64, 32, 16), 'model.neck.out_channels': (16, 8, 4),
        'model.bbox_head.in_channels': (16, 8, 4), 'model.bbox_head.bridge_channels': (44, 22, 11),
        'model.bbox_head.num_classes': 2, 'model.bbox_head.loss.class_weights': None,
        'model.test_cfg.score_thr': 0.001, 'default_hooks.logger.interval': 1, 'randomness': dict(seed=1),
        'load_from': 'start.pth'})
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root='set/', ann_file='all.json', data_prefix=dict(img='img/'),
                              metainfo=dict(classes=CLASSES))
        for step in loader.dataset.pipeline:
            if step.type == 'Letterbox':
                step.scale = (64, 64)
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = 'set/all.json'
    cfg.stages = [dict(name='head', epochs=EPOCHS, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0)]
    cfg.train_cfg.pop('max_epochs', None)
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.default_hooks.pop('visualization', None)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    cfg.work_dir, cfg.log_level = 'run', 'WARNING'
    return cfg


class LossesHook(Hook):
    """The loss of every iteration and what every validation measured."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.metrics: dict[int, dict[str, float]] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note the loss."""
        self.losses[runner.iter + 1] = float(outputs['loss'])

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note the metrics."""
        self.metrics[runner.epoch] = {name: float(value) for name, value in (metrics or {}).items()
                                      if name.startswith(('coco/', 'val/'))}


def start_weights(cfg: Config) -> None:
    """Weights of few values, which take little room when packed."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    torch.manual_seed(3)
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = model.state_dict()
    for value in state.values():
        if value.is_floating_point() and value.dim() == 4:
            step = value.std() if value.numel() > 64 else 2**-6
            value.copy_((value / step).round() * step)
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=CLASSES))), 'start.pth')


def config_keys(configs: Path) -> dict[str, list[str]]:
    """Name of each config of that build -> its keys."""
    return {path.name: sorted(Config.fromfile(path)) for path in sorted(configs.glob('*.py'))}


def make(configs: Path, out: Path) -> None:
    """Train in a temporary folder and keep what the run left."""
    out.mkdir(parents=True)
    (out / 'configs.json').write_text(json.dumps(config_keys(configs), indent=1) + '\n')
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        draw(Path('set'))
        cfg = release_config(configs)
        start_weights(cfg)
        seen = LossesHook()
        with patch('mmengine.config.config.FormatCode', lambda text, **_: (text, True), create=True):
            cfg.dump(out / 'config.py')
            runner = Runner.from_cfg(cfg)
            runner.register_hook(seen, 'LOWEST')
            runner.train()
        for epoch in range(1, EPOCHS + 1):
            with gzip.GzipFile(out / f'epoch_{epoch}.pth.gz', 'wb', mtime=0) as packed:
                packed.write(Path('run', f'epoch_{epoch}.pth').read_bytes())
        shutil.copy('run/guard.json', out)
        said = subprocess.run([sys.executable, str(configs.parent / 'tools/check_run.py'), 'run', '--json'],
                              capture_output=True, text=True, check=False).stdout
        verdicts = {each['name']: each['passed'] for each in json.loads(said)['checks']}
        (out / 'figures.json').write_text(json.dumps(
            dict(losses=seen.losses, metrics=seen.metrics, verdicts=verdicts), indent=1) + '\n')


if __name__ == '__main__':
    make(Path('configs').resolve(), Path(sys.argv[1]).resolve())
