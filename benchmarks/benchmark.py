"""Speed against named peers, both measured in one run; and benchmarks of learning, which train for an hour or so."""
from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmcv.ops import batched_nms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from benchmarks.accuracy import accuracy
from benchmarks.guard_benchmark import guarded_step, validation
from benchmarks.import_benchmark import import_rows
from benchmarks.trials import LearningOptions
from benchmarks.untraining import untraining
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.models.maths.suppression import NMSOptions, suppress

SIDE = 320  # pixels
PEER_CONFIG = 'configs/yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'
OUR_CONFIG = 'configs/_base_/models/multigrid_darknet53.py'
Case = Callable[[], Any]


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a suite that is not there.

    Raises:
        UserError: With the names that are.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f'no suite {unknown}; there are {", ".join(known)}')


def run_suites(names: Sequence[str], device: str, repeats: int = 5) -> list[dict[str, Any]]:
    """Time each suite's two cases in turns.

    Args:
        names: Suites to run, of :data:`SUITES` and :data:`ROWS`; none means all of these.
        device: Torch device.
        repeats: Timed runs of each case after one that is not counted.

    Returns:
        Per suite: its name, the peer, median seconds of both and their ratio (below 1: faster than the peer).

    Raises:
        UserError: If a suite is unknown.
    """
    check_names(names, (*SUITES, *ROWS))
    rows = []
    for name in names or (*SUITES, *ROWS):
        if name in ROWS:
            rows += ROWS[name]()
            continue
        peer, ours, theirs = SUITES[name](torch.device(device))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats + 1):
            for case, seconds in zip((ours, theirs), times):
                seconds.append(_seconds(case, device))
        mine, other = (statistics.median(seconds[1:]) for seconds in times)
        rows.append(dict(suite=name, peer=peer, device=device, threads=torch.get_num_threads(), ours_s=mine,
                         peer_s=other, ratio=mine / other))
    return rows


def write_json(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Write the rows, whole or not at all."""
    write_together({Path(path): methodcaller('write', (json.dumps(list(rows), indent=1) + '\n').encode())})


def _seconds(case: Case, device: str) -> float:
    start = time.perf_counter()
    case()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _models(device: torch.device) -> tuple[nn.Module, nn.Module]:
    """MultiGridDet and mmdet's YOLOv3, both with Darknet53, 80 classes and random weights."""
    init_default_scope('mmdet')
    root = Path(__file__).parents[1]
    ours = Config.fromfile(root / OUR_CONFIG).model
    ours.bbox_head.loss.class_weights = None
    theirs = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / PEER_CONFIG).model
    theirs.backbone.init_cfg = None
    torch.manual_seed(0)
    return MODELS.build(ours).to(device), MODELS.build(theirs).to(device)


def _batch(count: int, device: torch.device) -> tuple[Tensor, list[DetDataSample]]:
    """Random images with five objects each."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 5, 2, generator=generator) * SIDE / 2
    boxes = torch.cat((corner, corner + 16 + torch.rand(count, 5, 2, generator=generator) * SIDE / 3), 2)
    meta = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE), batch_input_shape=(SIDE, SIDE), pad_shape=(SIDE, SIDE),
                scale_factor=(1.0, 1.0), img_id=0)
    samples = [DetDataSample(gt_instances=InstanceData(bboxes=each, labels=torch.arange(5)), metainfo=meta).to(device)
               for each in boxes]
    return torch.rand(count, 3, SIDE, SIDE, generator=generator).to(device), samples


def _inference(device: torch.device) -> tuple[str, Case, Case]:
    images, samples = _batch(1, device)

    def case(model: nn.Module) -> Case:
        model.eval()
        return torch.no_grad()(lambda: model(images, samples, mode='predict'))

    ours, theirs = _models(device)
    return f'mmdet YOLOv3-d53, one image of {SIDE} pixels', case(ours), case(theirs)


def _train_step(device: torch.device) -> tuple[str, Case, Case]:
    images, samples = _batch(2, device)

    def case(model: nn.Module) -> Case:
        model.train()

        def step() -> None:
            model.zero_grad()
            loss, _ = model.parse_losses(model(images, samples, mode='loss'))  # type: ignore[operator]
            loss.backward()

        return step

    ours, theirs = _models(device)
    return f'mmdet YOLOv3-d53, loss and gradients of two images of {SIDE} pixels', case(ours), case(theirs)


def _suppression(device: torch.device) -> tuple[str, Case, Case]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1000, 2, generator=generator) * SIDE
    boxes = torch.cat((corner, corner + 10 + torch.rand(1000, 2, generator=generator) * 60), 1).to(device)
    scores = torch.rand(1000, generator=generator).to(device)
    labels = torch.zeros(1000, dtype=torch.long, device=device)
    config = dict(type='nms', iou_threshold=0.45)
    return ('mmcv batched_nms, 1,000 boxes', lambda: suppress(boxes, scores, labels, NMSOptions()),
            lambda: batched_nms(boxes, scores, labels, config, class_agnostic=True))


SUITES: dict[str, Callable[[torch.device], tuple[str, Case, Case]]] = {
    'inference': _inference,
    'train_step': _train_step,
    'suppression': _suppression,
    'validation': validation,
    'guarded_step': guarded_step,
}
ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {'import': import_rows}
"""Suites whose sides run in processes of their own."""
LEARNING: dict[str, Callable[[LearningOptions], str]] = {'accuracy': accuracy, 'untraining': untraining}
"""Suites that train: not among those that run when none is named; each writes into a folder and returns its report."""
