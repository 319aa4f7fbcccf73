"""A tiny detector with random weights on drawn pictures, for what is done with trained ones."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.runs.held_out import quiet
from tests.support.small_run import CLASSES, make_dataset, write_config


class TinyModel(NamedTuple):
    """Config, checkpoint that names its classes, and pictures of it."""

    config: Path
    weights: Path
    pictures: list[Path]
    annotations: Path


def tiny_model(folder: Path) -> TinyModel:
    """Scores are low and of many values, so that some boxes are above any threshold and no two are alike."""
    data = make_dataset(folder / 'data', 4)
    config = write_config(folder / 'cfg.py', data, work_dir=str(folder))
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    with quiet():
        model.init_weights()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if 'predict_convs' in name and name.endswith('weight'):
                tensor.normal_(std=0.02)
            elif 'predict_convs' in name:
                tensor[4] = 0
    weights = folder / 'w.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), weights)
    return TinyModel(config, weights, sorted((data / 'images').glob('*.png')), data / 'all.json')


def needs(*modules: str) -> None:
    """Skip where a library of the extra ``deploy`` is not installed. What is, is imported as the package imports it."""
    for module in modules:
        try:
            needed(module, 'this test')
        except UserError as error:
            pytest.skip(str(error))
