"""A picture from its file to its boxes: every form of the full-size network beside mmdet's YOLOv3 as it comes."""
from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from benchmarks.speed import PEER_CONFIG, in_turns
from mgdet_plugin.common.resources import CONFIGS
from mgdet_plugin.deploy.backends.graph_backend import GraphBackend, openvino_run
from mgdet_plugin.deploy.backends.torch_backend import TorchBackend, Weights
from mgdet_plugin.deploy.description import Description
from mgdet_plugin.deploy.export.export_model import describe
from mgdet_plugin.deploy.export.formats import onnx_model, openvino_model
from mgdet_plugin.deploy.export.graph import DetectorGraph
from mgdet_plugin.deploy.export.quantisation import quantise
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.predictor import Backend, Predictor

SIDES = (416, 608)  # pixels
PICTURE = (640, 640)  # square, so that the peer, which keeps a picture's shape, has an input of the same size
CLASSES = tuple(f'class {index}' for index in range(80))
PRIOR = -4.6  # logit of an objectness of 0.01: random weights find next to nothing, as on most cells of a picture
SCORE = 0.1
MATMUL = 2048


def deploy_rows(repeats: int = 5) -> list[dict[str, Any]]:
    """Time one picture of 640x640 in turns, one thread on one core, random weights, 80 classes.

    Args:
        repeats: Timed runs of each form after one that is not counted.

    Returns:
        A row a form and side, and two of what the core reaches in a product of matrices (G operations a second).
    """
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(cores)})
    init_default_scope('mmdet')
    try:
        with TemporaryDirectory() as folder:
            picture = Path(folder, 'picture.png')
            pixels = np.random.default_rng(0).integers(0, 256, (PICTURE[1] // 8, PICTURE[0] // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize(PICTURE).save(picture)
            return [row for side in SIDES for row in _side(side, picture, repeats)] + _peaks(repeats)
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _side(side: int, picture: Path, repeats: int) -> list[dict[str, Any]]:
    peer = Predictor(TorchBackend(_peer(side), 'peer', 'cpu'))
    ours = {name: Predictor(backend) for name, backend in _forms(side, picture).items()}
    times = in_turns({name: lambda each=each: each(picture)  # type: ignore[misc]
                          for name, each in dict(peer=peer, **ours).items()}, repeats)
    base = times.pop('peer')
    return [dict(suite=f'deploy {name} {side}', peer=f'mmdet YOLOv3-d53 in torch, a {PICTURE[0]}x{PICTURE[1]} file to '
                 f'boxes at {side} pixels', device='cpu', threads=1, ours_s=seconds, peer_s=base, ratio=seconds / base)
            for name, seconds in times.items()]


def _peer(side: int) -> Weights:
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / PEER_CONFIG)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(score_thr=SCORE, conf_thr=SCORE)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (side, side)
    return _random(cfg)


def _ours(side: int) -> Weights:
    cfg = Config.fromfile(CONFIGS / 'mgdet_model5_stage1.py')
    cfg.model.test_cfg.score_thr = SCORE
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Letterbox':
            step.scale = (side, side)
    return _random(cfg)


def _random(cfg: Config) -> Weights:
    """Random weights whose cells are almost all sure of nothing, in either head."""
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    for name, tensor in state.items():
        if name.endswith('bias') and ('predict_convs' in name or 'convs_pred' in name):
            tensor[4::len(CLASSES) + 5 if 'convs_pred' in name else len(tensor)] = PRIOR
    return Weights(cfg, state, dict(classes=CLASSES))


def _forms(side: int, picture: Path) -> dict[str, Backend]:
    """The network in every form."""
    found = _ours(side)
    plain = TorchBackend(found, 'ours', 'cpu')
    forms: dict[str, Backend] = {'torch': plain, 'torch fp32 folded': _exported(found, 'fp32'),
                                 'torch bf16': TorchBackend(found, 'ours', 'cpu', fast=True)}
    about = describe(found, plain, False, 'fp32')
    core = needed('openvino', 'the suite deploy').Core()
    model = openvino_model(onnx_model(DetectorGraph(plain.model, with_maps=True), (side, side)))
    seen = [Predictor(plain).prepared(picture)]
    integers = quantise(model, seen, lambda attempt: 1.0, 1.0, lambda line: None)
    for precision, each in (('fp32', model), ('bf16', model), ('int8', integers)):
        forms[f'openvino {precision}'] = _graph(about, core, each, precision)
    return forms


def _exported(found: Weights, precision: str) -> TorchBackend:
    """What ``export --format torch`` writes, in memory."""
    from mgdet_plugin.deploy.backends.fast import folded
    from mgdet_plugin.deploy.backends.torch_backend import build_model
    model = build_model(found, 'ours')
    folded(model)
    return TorchBackend(found._replace(state=model.state_dict(), precision=precision), 'ours', 'cpu')


def _graph(about: Description, core: Any, model: Any, precision: str) -> GraphBackend:
    return GraphBackend(about, openvino_run(core, model, precision, threads=1), precision)


def _peaks(repeats: int) -> list[dict[str, Any]]:
    """What the core reaches at the most, single precision the base."""
    sides = {name: torch.rand(MATMUL, MATMUL).to(dtype) for name, dtype in (('fp32', torch.float32),
                                                                           ('bf16', torch.bfloat16))}
    times = in_turns({name: lambda each=each: each @ each  # type: ignore[misc]
                          for name, each in sides.items()}, repeats)
    rates = {name: 2 * MATMUL ** 3 / seconds / 1e9 for name, seconds in times.items()}
    return [dict(suite=f'matmul peak {name}', peer='the same in single precision', unit='G/s', device='cpu', threads=1,
                 ours_s=rate, peer_s=rates['fp32'], ratio=rate / rates['fp32']) for name, rate in rates.items()]
