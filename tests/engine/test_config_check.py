"""Mistakes in building a run: one line that names the place in the config and the nearest right name."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS
from mgdet_plugin.engine.config_check import checked
from mgdet_plugin.engine.preflight import prepare_train
from mgdet_plugin.plan.report import plan_report

NANO = CONFIGS / 'mgdet_nano_stage1.py'


def error_of(**options: Any) -> str:
    """What `plan` says of the small config with dotted keys set."""
    with pytest.raises(UserError) as raised:
        cfg = Config.fromfile(NANO)
        cfg.merge_from_dict(dict(options, load_from=None))
        with checked(cfg):
            plan_report(cfg)
    return str(raised.value)


@pytest.mark.parametrize('key, value, place, nearest', [
    ('train_dataloader.dataset.type', 'CocoDatset', 'train_dataloader.dataset.type', 'CocoDataset'),
    ('train_dataloader.dataset.pipeline.2.type', 'DropDegenrateBoxes', 'train_dataloader.dataset.pipeline[2].type',
     'DropDegenerateBoxes'),
    ('train_dataloader.dataset.pipeline.3.transforms.0.type', 'Mosaik',
     'train_dataloader.dataset.pipeline[3].transforms[0].type', 'Mosaic'),
    ('train_dataloader.dataset.pipeline.4.scal', 3, 'train_dataloader.dataset.pipeline[4].scal', 'scale'),
    ('train_dataloader.dataset.ann_fil', 'a', 'train_dataloader.dataset.ann_fil', 'ann_file'),
    ('train_dataloader.batchsize', 4, 'train_dataloader.batchsize', 'batch_size'),
    ('train_dataloader.sampler.shufle', True, 'train_dataloader.sampler.shufle', 'shuffle'),
    ('model.type', 'MultiGridDetector', 'model.type', 'MultiGridDet'),
    ('model.bbox_head.num_class', 3, 'model.bbox_head.num_class', 'num_classes'),
    ('model.bbox_head.loss.coord_scal', 3, 'model.bbox_head.loss.coord_scal', 'coord_scale'),
    ('model.bbox_head.assigner.type', 'MultiGridAsigner', 'model.bbox_head.assigner.type', 'MultiGridAssigner'),
    ('default_hooks.checkpoint.type', 'WholeCheckpoint', 'default_hooks.checkpoint.type', 'WholeCheckpointHook'),
    ('default_hooks.checkpoint.save_bst', 'auto', 'default_hooks.checkpoint.save_bst', 'save_best'),
    ('custom_hooks', [dict(type='EMAHok')], 'custom_hooks[0].type', 'EMAHook'),
    ('val_evaluator.type', 'CocoMetrik', 'val_evaluator.type', 'CocoMetric'),
    ('val_evaluator', [dict(type='CocoMetric', metrics='bbox')], 'val_evaluator[0].metrics', 'metric'),
    ('val_cfg.type', 'LosValLoop', 'val_cfg.type', 'LossValLoop'),
    ('val_cfg.others.old.dataloader.dataset.type', 'Coco', 'val_cfg.others.old.dataloader.dataset.type', ''),
    ('train_cfg.val_intervall', 3, 'train_cfg.val_intervall', 'val_interval'),
    ('optim_wrapper.clip_gradd', 1, 'optim_wrapper.clip_gradd', 'clip_grad'),
    ('optim_wrapper.optimizer.type', 'Adamw', 'optim_wrapper.optimizer.type', 'AdamW'),
    ('optim_wrapper.optimizer.type', 'Adm', 'optim_wrapper.optimizer.type', 'Adam'),
    ('optim_wrapper.optimizer.type', 'SGD', 'optim_wrapper.optimizer.eps', ''),
    ('param_scheduler.0.type', 'StagedLr', 'param_scheduler[0].type', 'StagedLR'),
    ('visualizer.vis_backends.0.type', 'TensorbordVisBackend', 'visualizer.vis_backends[0].type',
     'TensorboardVisBackend'),
    ('log_processor.windowsize', 3, 'log_processor.windowsize', 'window_size'),
])
def test_a_wrong_name_is_named_with_its_place(key: str, value: Any, place: str, nearest: str) -> None:
    said = error_of(**{key: value})
    assert said.startswith(f'{place} is ' if place.endswith('.type') else f'{place}: ')
    assert f'the nearest name is {nearest}' in said if nearest else 'takes no' in said or 'registered' in said


@pytest.mark.parametrize('key, value, said', [
    ('optim_wrapper.clip_grad', dict(max_nrom=35), r'max_nrom.*as in dict\(max_norm=35\)'),
    ('optim_wrapper.clip_grad', 35, r'optim_wrapper cannot be built with .*as in dict\(max_norm=35\)'),
    ('optim_wrapper.accumulative_counts', 0, 'accumulative_counts a whole number from 1'),
    ('train_dataloader.sampler', dict(type='InfiniteSampler', _delete_=True), 'InfiniteSampler, which has no end'),
    ('default_scope', 'mmdett', "default_scope is 'mmdett', and .*; the nearest name is mmdet$")])
def test_a_value_that_would_fail_in_the_first_step(key: str, value: Any, said: str) -> None:
    assert re.search(said, error_of(**{key: value}))


def test_members_of_another_library_s_transform_are_its_own():
    cfg = Config.fromfile(NANO)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='Albu', transforms=[dict(type='ShiftScaleRotate')]))
    with checked(cfg):
        pass


@pytest.mark.parametrize('key, value, said', [
    ('val_evaluator.metric', 'mAP', 'val_evaluator (FasterCocoMetric) cannot be built: KeyError: "metric should be'),
    ('model.bbox_head.loss.coord_scale', 'abc', 'model.bbox_head.loss.coord_scale: MultiGridLoss takes a number, got'),
    ('model.bbox_head.anchors', None, 'model.bbox_head.assigner (MultiGridAssigner) cannot be built: TypeError'),
    ('model.backbone.init_cfg', dict(type='Pretraned'), "model.backbone.init_cfg.type is 'Pretraned', and no weight"),
    ('model', 3, 'model must be a dict, got 3'),
    ('train_dataloader.dataset', None, 'train_dataloader.dataset must be a dict with a type, got None'),
    ('train_dataloader.dataset.pipeline', ['Letterbox'], 'train_dataloader.dataset.pipeline[0] must be a dict with a'),
    ('default_hooks.logger', 'LoggerHook', 'default_hooks.logger must be a dict with a type, or None, got'),
    ('custom_hooks', 'EMAHook', "custom_hooks must be a dict or a list of them, got 'EMAHook'"),
    ('default_hooks.checkpoint.interval', 'often', 'default_hooks.checkpoint.interval: WholeCheckpointHook takes'),
    ('train_cfg.max_epochs', -1, 'train_cfg.max_epochs must be a whole number from 1 or left out, got -1'),
    ('optim_wrapper.optimizer.lr', 'fast', 'optim_wrapper.optimizer (Adam) cannot be built: TypeError'),
    ('default_hooks.checkpoint.rule', 'most', 'default_hooks.checkpoint (WholeCheckpointHook) cannot be built'),
    ('default_hooks.drift_guard.limt', 3, "DriftGuardHook has no option ['limt']"),
    ('visualizer.vis_backends.0.type', 'AimVisBackend', 'visualizer.vis_backends[0].type is AimVisBackend, which needs '
     'aim: pip install aim'),
])
def test_a_value_that_a_class_refuses_is_named_with_its_place(key: str, value: Any, said: str) -> None:
    assert error_of(**{key: value}).startswith(said)


def test_healthy_configs_pass() -> None:
    """The package's, and one of mmdet's whose model takes types from outside the registries."""
    import mmdet
    theirs = Path(mmdet.__file__).parent / '.mim' / 'configs' / 'retinanet' / 'retinanet_r50_fpn_1x_coco.py'
    for path in (NANO, CONFIGS / 'scratch' / 'yolov3_nano_digits.py', theirs):
        with checked(Config.fromfile(path)):
            pass


def test_a_launcher_that_started_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(UserError, match=r'--launcher pytorch is for processes .* RANK is not set'):
        prepare_train([str(NANO), '--launcher', 'pytorch'])


def test_a_config_that_cannot_train(tmp_path: Path) -> None:
    path = tmp_path / 'no_model.py'
    path.write_text('train_cfg = dict(by_epoch=True, max_epochs=1)\n')
    with pytest.raises(UserError, match='has no model and no train_dataloader and no optim_wrapper'):
        prepare_train([str(path)])
