"""Cases of speed: what the detector does, and the same of a named peer."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import mmdet
import torch
from mmcv.ops import batched_nms
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mgdet_plugin.compat import has_compiled_ops
from mgdet_plugin.models.maths.suppression import NMSOptions, suppress

SIDE = 320  # pixels
PEER_CONFIG = 'configs/yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'
OUR_CONFIG = 'configs/_base_/models/multigrid_darknet53.py'
Case = Callable[[], Any]
Name = TypeVar('Name')


def in_turns(cases: Mapping[Name, Case], repeats: int) -> dict[Name, float]:
    """Median seconds of each case, the cases taken in turns, the first turn not counted."""
    times: dict[Name, list[float]] = {name: [] for name in cases}
    for _ in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    return {name: median(each[1:]) for name, each in times.items()}


def detectors(device: torch.device) -> tuple[nn.Module, nn.Module]:
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


def inference(device: torch.device) -> tuple[str, Case, Case]:
    images, samples = _batch(1, device)

    def case(model: nn.Module) -> Case:
        model.eval()
        return torch.no_grad()(lambda: model(images, samples, mode='predict'))

    ours, theirs = detectors(device)
    return f'mmdet YOLOv3-d53, one image of {SIDE} pixels', case(ours), case(theirs)


def train_step(device: torch.device) -> tuple[str, Case, Case]:
    images, samples = _batch(2, device)

    def case(model: nn.Module) -> Case:
        model.train()

        def step() -> None:
            model.zero_grad()
            loss, _ = model.parse_losses(model(images, samples, mode='loss'))  # type: ignore[operator]
            loss.backward()

        return step

    ours, theirs = detectors(device)
    return f'mmdet YOLOv3-d53, loss and gradients of two images of {SIDE} pixels', case(ours), case(theirs)


def suppression(device: torch.device, count: int = 1000) -> tuple[str, Case, Case]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * SIDE
    boxes = torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 60), 1)
    scores = torch.rand(count, generator=generator)
    return _suppression(boxes, scores, torch.zeros(count, dtype=torch.long), True, device)


def _suppression(boxes: Tensor, scores: Tensor, labels: Tensor, class_agnostic: bool,
                 device: torch.device) -> tuple[str, Case, Case]:
    boxes, scores, labels = (each.to(device) for each in (boxes, scores, labels))
    config = dict(type='nms', iou_threshold=0.45)
    peer = f"mmcv batched_nms{' compiled' if has_compiled_ops() else ''}, {len(boxes):,} boxes"
    return (peer, lambda: suppress(boxes, scores, labels, NMSOptions(class_agnostic=class_agnostic)),
            lambda: batched_nms(boxes, scores, labels, config, class_agnostic=class_agnostic))


def suppression_cells(device: torch.device) -> tuple[str, Case, Case]:
    """As many boxes as an image of 608 pixels has cells."""
    return suppression(device, 19**2 + 38**2 + 76**2)


def suppression_classes(device: torch.device, num_classes: int = 80) -> tuple[str, Case, Case]:
    """By class, a made-up map of 608 pixels: nine cells a level on each of 20 objects, half the others on nothing."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    centres, sizes = rand(20, 2) * 608, 20 + rand(20, 2) * 180
    classes = torch.randint(num_classes, (20, ), generator=generator)
    found = []
    for stride in (32, 16, 8):
        cells = torch.cartesian_prod(*[torch.arange(stride / 2, 608, stride)] * 2)  # (H W, 2) their centres
        distance, nearest = (cells[:, None] - centres).abs().amax(-1).min(1)
        own = distance <= 1.5 * stride
        centre = torch.where(own[:, None], centres[nearest], cells) + 2 * rand(len(cells), 2)
        half = torch.where(own[:, None], sizes[nearest], stride + 2 * stride * rand(len(cells), 2)) / 2
        scores = torch.where(own, 0.3 + 0.7 * rand(len(cells)), 0.2 * rand(len(cells)))
        labels = torch.where(own, classes[nearest], torch.randint(num_classes, (len(cells), ), generator=generator))
        found.append((torch.cat((centre - half, centre + half), 1), scores, labels))
    boxes, scores, labels = map(torch.cat, zip(*found))
    above = scores > 0.1
    return _suppression(boxes[above], scores[above], labels[above], False, device)
