"""How the time of a training step of the small model grows: with images, pixels, boxes, threads and processes."""
from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmengine.model import MMDistributedDataParallel

from benchmarks.guard_benchmark import small_model
from benchmarks.speed import in_turns
from benchmarks.training.steps import answer, batch_of, in_a_process, row, stepping
from mgdet_plugin.common.errors import UserError

IMAGES, SIDE, BOXES = (1, 2, 4, 8, 16), (320, 448, 640, 896, 1280), (1, 10, 50, 100, 200)
TOGETHER = 8  # images of a process where threads or processes are compared


def scaling_rows(repeats: int = 3) -> list[dict[str, Any]]:
    """Exponents of the cost, and what a second thread or process gives.

    Returns:
        Rows of exponents against 1 (a side counts twice: the pixels are its square), a row of seconds for two threads
        against one, and one of seconds an image for two processes that exchange gradients by gloo against one.

    Raises:
        UserError: There is but one core.
    """
    if len(os.sched_getaffinity(0)) < 2:
        raise UserError('scaling compares one core with two, and this process may use one')
    axes = {'images': {count: (count, 320, 5) for count in IMAGES},
            'pixels': {side * side: (1, side, 5) for side in SIDE},
            'boxes': {count: (4, 320, count) for count in BOXES}}
    step, threads, rows = stepping(small_model(torch.device('cpu'))), torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for name, cases in axes.items():
            seconds = in_turns({size: partial(step, batch_of(*case)) for size, case in cases.items()}, repeats)
            rows.append(row(f'scaling_{name}', f'linear growth; {_listed(seconds)}', 'exponent', exponent(seconds), 1))
        batch = batch_of(TOGETHER, 320, 5)
        alone = in_turns({'step': partial(step, batch)}, repeats)['step']
        torch.set_num_threads(2)
        rows.append(row('scaling_threads', f'one thread, {TOGETHER} images of 320 pixels', 's',
                        in_turns({'step': partial(step, batch)}, repeats)['step'], alone))
    finally:
        torch.set_num_threads(threads)
    one, two = (_with_processes(count, repeats) / TOGETHER / count for count in (1, 2))
    return [*rows, row('scaling_processes', f'one process, {TOGETHER} images a process', 's', two, one)]


def exponent(seconds: Mapping[Any, float]) -> float:
    """Slope of the logarithm of the time over that of the size."""
    sizes, times = (np.log(list(each)) for each in (seconds.keys(), seconds.values()))
    return float(np.polyfit(sizes, times, 1)[0])


def process_step(rank: int, processes: int, meeting: str, repeats: int) -> float:
    """Seconds of a step of one of several processes that share their gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=Path(meeting).as_uri(), rank=rank, world_size=processes)
    model = MMDistributedDataParallel(small_model(torch.device('cpu')), broadcast_buffers=False,
                                      find_unused_parameters=True)
    step = stepping(model)
    seconds = in_turns({'step': partial(step, batch_of(TOGETHER, 320, 5))}, repeats)['step']
    torch.distributed.barrier()
    return seconds


def _with_processes(count: int, repeats: int) -> float:
    with TemporaryDirectory() as folder:
        meeting = os.path.join(folder, 'meeting')
        started = [in_a_process(__name__, f'process_step({rank}, {count}, {meeting!r}, {repeats})')
                   for rank in range(count)]
        return max(answer(each) for each in started)


def _listed(seconds: Mapping[int, float]) -> str:
    return ', '.join(f'{size:,}: {each:.2f} s' for size, each in seconds.items())
