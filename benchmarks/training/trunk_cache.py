"""What keeping the frozen part's outputs is worth: a first stage of five epochs with ``trunk_cache`` and without."""
from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.trials import ONE_PROCESS, ROOT
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.keep.batch_statistics import estimate_statistics

CONFIG, DATA = 'configs/mgdet_model5_stage1.py', 'configs/_base_/datasets/digits_target.py'
SIDE, BATCH, TRAINED, VALIDATED = 416, 4, 32, 4  # pixels, images
OPTIONS: dict[str, Any] = {
    **ONE_PROCESS, 'model.bbox_head.num_classes': 10, 'stages.0.clean': True, 'randomness.seed': 0,
    # What takes as long however few the images are, and would hide what is measured with so few.
    'default_hooks.drift_guard': None, 'default_hooks.checkpoint.interval': 5,
    'default_hooks.checkpoint.save_best': None, 'train_dataloader.batch_size': BATCH,
    'val_dataloader.batch_size': BATCH, 'train_dataloader.dataset.indices': TRAINED,
    'val_dataloader.dataset.indices': VALIDATED, 'log_level': 'WARNING', 'visualizer.vis_backends': []}
SIDES: dict[str, dict[str, Any] | None] = {'ours': {}, 'peer': None}


def stage1_cache_rows(repeats: int = 2) -> list[dict[str, Any]]:
    """Train both in turns, each from the same weights, in this process.

    Args:
        repeats: Runs of each side.

    Returns:
        A row of the seconds of ``Runner.train``, and one of the largest difference of a weight between the two beside
        the largest change of a weight in the stage.
    """
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as folder:
        base = stage_config()
        start = save_weights(base, Path(folder, 'start.pth'))
        ends: dict[str, dict[str, Tensor]] = {}
        for turn in range(repeats):
            for side, caching in SIDES.items():
                cfg = Config(base.to_dict() | dict(trunk_cache=caching, load_from=str(Path(folder, 'start.pth'))))
                cfg.work_dir, cfg.experiment_name = str(Path(folder, f'{side}_{turn}')), f'{side}_{turn}'
                runner = Runner.from_cfg(cfg)
                begun = time.perf_counter()
                runner.train()
                seconds[side].append(time.perf_counter() - begun)
                ends[side] = runner.model.state_dict()
    apart, change = largest_difference(*ends.values()), largest_difference(start, ends['peer'])
    ours, peer = median(seconds['ours']), median(seconds['peer'])
    shared: dict[str, Any] = dict(device='cpu', threads=torch.get_num_threads())
    what = f'the same without trunk_cache, five epochs of {TRAINED} images of {SIDE} pixels, {VALIDATED} to validate on'
    return [dict(suite='stage1_cache', peer=what, unit='s', ours_s=ours, peer_s=peer, ratio=ours / peer, **shared),
            dict(suite='stage1_cache_difference', peer='the largest change of a weight in the stage', unit='',
                 ours_s=apart, peer_s=change, ratio=apart / change, **shared)]


def stage_config() -> Config:
    """The full-size first stage on digits."""
    init_default_scope('mmdet')
    cfg, digits = Config.fromfile(ROOT / CONFIG), Config.fromfile(ROOT / DATA)
    for key in ('train_dataloader', 'val_dataloader', 'val_evaluator'):
        cfg[key] = digits[key]
    cfg.merge_from_dict(OPTIONS)
    for split in ('train', 'val'):
        for step in cfg[f'{split}_dataloader'].dataset.pipeline:
            if step.type == 'Letterbox':
                step.scale = (SIDE, SIDE)
    ensure_embedded_data(cfg)
    return cfg


def save_weights(cfg: Config, path: Path) -> dict[str, Tensor]:
    """Write random weights with the statistics they have on images; returns them."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    estimate_statistics(model, DataLoader(DATASETS.build(cfg.val_dataloader.dataset), VALIDATED,
                                          collate_fn=pseudo_collate))
    torch.save(dict(state_dict=model.state_dict()), path)
    return dict(model.state_dict())


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of any number of two states."""
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())
