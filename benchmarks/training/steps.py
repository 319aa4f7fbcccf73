"""Whole training steps of the full-size network: preprocessing, loss, gradients and Adam's step of four images.

Of the stages each is measured in a process of its own, for its memory.
"""
from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from mmdet.structures import DetDataSample
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.structures import InstanceData

from benchmarks.import_benchmark import peak_memory
from benchmarks.speed import detectors, in_turns
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.freezing import freeze
from mgdet_plugin.plan.plan import build_plan

IMAGES = 4
Step = Callable[..., Any]
Name = TypeVar('Name')


def amp_rows(sides: tuple[int, ...] = (320, 416), repeats: int = 5) -> list[dict[str, Any]]:
    """A step as ``--amp`` makes it on a CPU, in bfloat16 with channels innermost, against three in single precision.

    Args:
        sides: Of the images, in pixels.
        repeats: Timed steps of each case, in turns, after one that is not counted.

    Returns:
        Per side a row against our own detector, the same with channels innermost and mmdet's YOLOv3-d53.
    """
    device, rows = torch.device('cpu'), []
    for side in sides:
        (ours, theirs), batch = detectors(device), batch_of(IMAGES, side, 5)
        cases = {'ours': stepping(copy.deepcopy(ours), mixed=True, layout=torch.channels_last),
                 'our own float32': stepping(copy.deepcopy(ours)),
                 'our own float32, channels innermost': stepping(ours, layout=torch.channels_last),
                 'mmdet YOLOv3-d53, float32': stepping(theirs)}
        seconds = in_turns({name: partial(step, batch) for name, step in cases.items()}, repeats)
        rows += [row(f'amp_step_{side}', f'{peer}, a step of {IMAGES} images of {side} pixels', 's',
                      seconds['ours'], seconds[peer]) for peer in list(cases)[1:]]
    return rows


def stage_rows(side: int = 320, repeats: int = 3) -> list[dict[str, Any]]:
    """A step with the backbone frozen, and with all but the last layers, against one with everything trainable.

    Returns:
        Per freeze level a row of seconds, and one of the memory a step takes beyond imports and model.
    """
    runs: dict[int, list[dict[str, float]]] = {0: [], 1: [], 2: []}
    for _ in range(repeats):
        for level, measured in runs.items():
            measured.append(answer(in_a_process(__name__, f'stage_step({level}, {side})')))
    rows = []
    for level in (1, 2):
        for field, unit in (('seconds', 's'), ('memory', 'MB'), ('process', 'MB')):
            ours, peer = (median(run[field] for run in runs[each]) for each in (level, 0))
            rows.append(row(f'freeze_level_{level}_{field}', f'everything trainable, {IMAGES} images of {side} pixels',
                             unit, ours, peer))
    return rows


def stage_step(level: int, side: int) -> dict[str, float]:
    """Seconds of a step at a freeze level, and memory in MB: beyond what the built model holds, and of all."""
    model = detectors(torch.device('cpu'))[0]
    step = partial(stepping(model, level=level), batch_of(IMAGES, side, 5))
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew from what is resident now
    before = peak_memory()
    seconds = in_turns({'step': step}, 3)['step']
    return dict(seconds=seconds, memory=(peak_memory() - before) / 1e6, process=peak_memory() / 1e6)


def in_a_process(module: str, call: str) -> subprocess.Popen[str]:
    """Start a call of a function of a module of benchmarks, whose value :func:`answer` waits for."""
    code = f'import json, mgdet_plugin; from {module} import *; print(json.dumps({call}))'
    return subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).parents[2], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process: subprocess.Popen[str]) -> Any:
    """The value of a call in a process.

    Raises:
        UserError: It failed.
    """
    written, complaint = process.communicate()
    if process.returncode:
        raise UserError(f'a process of the benchmark failed: {(complaint.strip().splitlines() or ["killed"])[-1]}')
    return json.loads(written.splitlines()[-1])


def stepping(model: Any, mixed: bool = False, level: int = 0,
             layout: torch.memory_format = torch.contiguous_format) -> Step:
    """Training steps of a detector on a batch it is given, in mmengine's own words.

    Args:
        model: The detector, wrapped or not.
        mixed: In bfloat16, as ``--amp`` does on a CPU.
        level: Freeze level.
        layout: Of maps and kernels in memory.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, eps=1e-7)  # before anything is frozen
    wrapper = AmpOptimWrapper(optimizer=optimizer) if mixed else OptimWrapper(optimizer)
    model.train().to(memory_format=layout)
    if level:
        stage = build_plan([dict(name='one', epochs=1, lr=1e-6, freeze_level=level)])[0]
        freeze(model, stage)
    return lambda batch: model.train_step(batch, optim_wrapper=wrapper)


def batch_of(images: int, side: int, boxes: int) -> dict[str, Any]:
    """Random images (3, side, side) with so many objects each, of a few pixels to a third of the side."""
    generator = torch.Generator().manual_seed(0)
    meta = dict(img_shape=(side, side), ori_shape=(side, side), batch_input_shape=(side, side), img_id=0,
                pad_shape=(side, side), scale_factor=(1.0, 1.0))
    samples = []
    for _ in range(images):
        corner = torch.rand(boxes, 2, generator=generator) * side * 0.6
        size = 8 + torch.rand(boxes, 2, generator=generator) ** 3 * side / 3
        objects = InstanceData(bboxes=torch.cat((corner, corner + size), 1), labels=torch.arange(boxes) % 10)
        samples.append(DetDataSample(gt_instances=objects, metainfo=meta))
    pictures = torch.randint(256, (images, 3, side, side), generator=generator, dtype=torch.uint8)
    return dict(inputs=list(pictures), data_samples=samples)


def row(suite: str, peer: str, unit: str, ours: float, theirs: float) -> dict[str, Any]:
    return dict(suite=suite, peer=peer, unit=unit, device='cpu', threads=torch.get_num_threads(), ours_s=ours,
                peer_s=theirs, ratio=ours / theirs)

