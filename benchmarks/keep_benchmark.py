"""What holding to old images costs: training steps of whole runs with and without ``keep``, each in its own process."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.trials import ONE_PROCESS, ROOT
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.run import logged_lines

CONFIG = 'configs/mgdet_nano_keep.py'
NEW = 4  # images of a step, to which the old ones are added
OPTIONS: dict[str, Any] = {
    **ONE_PROCESS, 'stages.0.epochs': 2, 'stages.0.warmup_epochs': 1, 'train_dataloader.batch_size': NEW,
    'default_hooks.logger.interval': 50,  # the means it logs are of the last 50 steps
    'default_hooks.channels_last.type': 'ChannelsLastHook',
    'default_hooks.drift_guard.divergence': 'warn', 'val_cfg.others': None, 'keep.held_out': 0}
WITHOUT: dict[str, Any] = {**{key: value for key, value in OPTIONS.items() if key != 'keep.held_out'}, 'keep': None}
SIDES: dict[str, dict[str, Any]] = {
    'without': WITHOUT,
    'nothing_of_six': {**WITHOUT, 'train_dataloader.batch_size': 6},  # what as many images cost with nothing held
    'third': {**OPTIONS, 'keep.share': 0.334},
    'third_cached': {**OPTIONS, 'keep.share': 0.334, 'keep.cache': 'memory'},
    'half': OPTIONS,
    'half_cached': {**OPTIONS, 'keep.cache': 'memory'}}


def keep_rows(repeats: int = 3) -> list[dict[str, Any]]:
    """Measure all sides in turns: 100 steps of the small model, 4 new images each, at 192 pixels, loading included.

    Args:
        repeats: Runs of each side.

    Returns:
        Two rows a side but the first: seconds a step and the process's peak memory, each with the ratio to the first.

    Raises:
        UserError: A run failed.
    """
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as folder:
        for index in range(repeats):
            for side, options in SIDES.items():
                runs[side].append(run_side(options, Path(folder, f'{side}_{index}')))
    rows = []
    for side in list(SIDES)[1:]:
        for place, (what, unit) in enumerate((('step', 's'), ('memory', 'MB'))):
            ours, peer = (median(each[place] for each in runs[name]) for name in (side, 'without'))
            rows.append(dict(suite=f'keep_{side}_{what}', peer=f'without keep, {NEW} new images a step', unit=unit,
                             device='cpu', threads=1, ours_s=ours, peer_s=peer, ratio=ours / peer))
    return rows


def run_side(options: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Seconds a step, the mean of the last 50 of a run, and its peak memory in MB."""
    command = [sys.executable, str(ROOT / 'tools/train.py'), CONFIG, '--demo', '--work-dir', str(folder),
               '--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        assert process.stdout is not None
        lines = process.stdout.read().strip().splitlines()
        _, status, usage = os.wait4(process.pid, 0)  # of this process alone
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f'a run of the benchmark ended with exit {process.returncode}: {(lines or ["no output"])[-1]}')
    times = [line['time'] for path in folder.glob('*/vis_data/scalars.json') for line in logged_lines(path)
             if 'lr' in line]  # those of training
    return times[-1], usage.ru_maxrss / 1024
