"""A detector in torch, out of a checkpoint or a Keras file."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor

import mgdet_plugin.datasets
import mgdet_plugin.models  # noqa: F401  their classes are registered
from mgdet_plugin.common.checkpoints import load_checkpoint, stored_config
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, config_path
from mgdet_plugin.common.weights_path import KERAS_SUFFIXES, check_weights_path
from mgdet_plugin.compat.launch import has_bfloat16
from mgdet_plugin.datasets.formats.annotation_check import config_name, dataset_names, iter_dataset_cfgs
from mgdet_plugin.deploy.backends.fast import folded, hasten
from mgdet_plugin.deploy.description import KEY, Description
from mgdet_plugin.deploy.preparation import Preparation
from mgdet_plugin.deploy.sheet import class_colours
from mgdet_plugin.deploy.thresholds import lower_scores
from mgdet_plugin.engine.checkpoint_check import check_same_tensors, compare_stored
from mgdet_plugin.models.multigrid_head import TEST_CFG, MultiGridHead
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.conversion import convert, file_classes
from mgdet_plugin.weights.mapping.classes import source_names
from mgdet_plugin.weights.mapping.layout import resolve_layers
from mgdet_plugin.weights.mapping.network import anchors_per_scale, load_config

SIZED = ('Letterbox', 'Resize', 'FixScaleResize')


class Weights(NamedTuple):
    """What a file of weights holds: the config of its model, its tensors, names and colours of its classes.

    ``precision`` is that of an export of torch, in which normalisation is folded into the convolutions; None of others.
    """

    cfg: Config
    state: Mapping[str, Tensor]
    metainfo: dict[str, Any]
    precision: str | None = None


def read_model(weights: str, config: str | Path | None = None) -> Weights:
    """Read a checkpoint or a Keras file with its config.

    Args:
        weights: The file.
        config: Path or name of the config. Default: see :func:`.predictor.detect`.

    Raises:
        UserError: The file is missing, no model's, or does not fit the config.
    """
    if weights.endswith(KERAS_SUFFIXES) and Path(weights).is_file():
        return _from_keras(weights, config)
    check_weights_path(weights, str(config or CONFIGS / 'mgdet_model5_stage1.py'))
    state, content = load_checkpoint(weights)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if config is not None:
        cfg = Config.fromfile(config_path(config))
    else:
        cfg = Config(stored_config(content))
    if not isinstance(cfg.get('model'), Mapping):
        raise UserError(f'{config_path(config)} has no model; give the config of the weights' if config else
                        f'{weights} holds no config of its model, which checkpoints of a training run do; give it with '
                        '--config')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    for line in compare_stored(weights, content, cfg, 'test'):
        print(line, file=sys.stderr)
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    stored = meta.get('dataset_meta')
    precision = Description.from_text(meta[KEY], weights).precision if KEY in meta else None
    return Weights(cfg, state, _metainfo(cfg, stored if isinstance(stored, Mapping) else {}, weights), precision)


def _from_keras(weights: str, config: str | Path | None) -> Weights:
    """A Keras file imported in memory; the config's classes are replaced by the file's where their number differs."""
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    with open_weights(Path(weights)) as opened:
        layout = resolve_layers(opened)
        if layout.part == 'model':
            count = file_classes(opened.name, layout.outputs, anchors_per_scale(cfg))
            cfg.merge_from_dict({'model.bbox_head.num_classes': count,
                                 'model.bbox_head.bridge_channels': layout.bridge_channels})
        state, _ = convert(opened, layout, 'model', cfg)
    return Weights(cfg, state, _metainfo(cfg, dict(classes=source_names(None, count)), weights))


def _metainfo(cfg: Config, stored: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Names and colours of the classes: those stored with the weights, else those of the config's test set.

    Raises:
        UserError: Their number is not that of the model's classes.
    """
    leaf = next(iter_dataset_cfgs((cfg.get('test_dataloader') or {}).get('dataset')), {})
    given = leaf.get('metainfo') or {}
    head = cfg.model.get('bbox_head') or {}
    count = head.get('num_classes') if isinstance(head, Mapping) else None
    names = stored.get('classes')
    if not names and leaf:
        names = dataset_names(leaf, 'test_dataloader.dataset')
        if count not in (None, len(names)):
            raise UserError(f'the test set of {config_name(cfg)} has {len(names)} classes, the model in {weights} '
                            f'{count}, and the file names none; give a config whose metainfo.classes names them')
    if not names:
        raise UserError(f'neither {weights} nor {config_name(cfg)} names the classes; set metainfo.classes of the test '
                        'set in the config')
    if count not in (None, len(names)):
        raise UserError(f'{weights} names {len(names)} classes, model.bbox_head.num_classes is {count}; give the '
                        'config the weights were trained with')
    return dict(classes=tuple(map(str, names)), palette=stored.get('palette') or given.get('palette'))


def pipeline_of(cfg: Config) -> list[dict[str, Any]]:
    """Steps of the test set's pipeline.

    Raises:
        UserError: There are none.
    """
    leaf = next(iter_dataset_cfgs((cfg.get('test_dataloader') or {}).get('dataset')), {})
    steps = leaf.get('pipeline') or []
    if not steps:
        raise UserError(f'{config_name(cfg)} has no test_dataloader.dataset.pipeline, which says how pictures are '
                        'prepared; give a whole config')
    return list(steps)


def build_model(found: Weights, name: str) -> BaseDetector:
    """The detector with its weights, to evaluate.

    Raises:
        UserError: They do not fit.
    """
    model: BaseDetector = MODELS.build(found.cfg.model)
    if found.precision is not None:
        folded(model)
    check_same_tensors(name, found.state, model.state_dict(), found.cfg)
    model.load_state_dict(found.state, strict=True)
    model.eval()
    return model


class TorchBackend:
    """A detector of mmdet as a predictor's backend; attributes as in :class:`.predictor.Backend`."""

    def __init__(self, found: Weights, name: str, device: str | None = None, fast: bool = False) -> None:
        steps = pipeline_of(found.cfg)
        self.classes = found.metainfo['classes']
        self.palette = class_colours(found.metainfo)
        self.model = build_model(found, name)
        device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
        precision = found.precision
        if fast and precision is None:
            folded(self.model)
            precision = 'bf16'
        if precision is not None:
            hasten(self.model, precision if has_bfloat16(device) else 'fp32')
        self.model.to(device)
        self.prepare = Preparation(steps, config_name(found.cfg))
        scale = next((step['scale'] for step in steps if step['type'] in SIZED), (0, 0))
        self.input_size = (int(scale[1]), int(scale[0]))
        head = getattr(self.model, 'bbox_head', None)
        self._settings: dict[str, Any] = getattr(head, 'test_cfg', None) or found.cfg.model.get('test_cfg') or {}
        own = TEST_CFG if isinstance(head, MultiGridHead) else {}
        self.score_thr = float(self._settings.get('score_thr', own.get('score_thr', 0.0)))

    def lower(self, score_thr: float) -> None:
        """Give detections above this score, too."""
        lower_scores(self._settings, score_thr)

    def __call__(self, packed: list[dict[str, Any]]) -> list[DetDataSample]:
        """The samples with ``pred_instances`` on the CPU, boxes in pixels of the original picture."""
        with torch.inference_mode():
            return [sample.cpu() for sample in self.model.test_step(pseudo_collate(packed))]


def load_torch(weights: str, config: str | Path | None = None, device: str | None = None, fast: bool = False,
               threads: int | None = None) -> TorchBackend:
    """The backend of a checkpoint or a Keras file; arguments as in :func:`.predictor.detect`."""
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"the device '{device}' cannot be used ({str(error).splitlines()[0]}); give cpu or cuda:N"
                            ) from None
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchBackend(read_model(weights, config), weights, device, fast)
