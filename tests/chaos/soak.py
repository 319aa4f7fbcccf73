"""A long run watched from outside and inside: memory, open files, threads and the work folder must not grow.

``python -m tests.chaos.soak [--iters N] [--epoch M] [--work-dir D] [--json F]`` trains the small model on the embedded
digits, held to old pictures, with guard, a worker, validation and checkpoints, at the smallest input, and prints what
each resource did. Exit code 1 where one grew.
"""
from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mgdet_plugin.guard  # noqa: F401
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.weights.importer import import_keras

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/mgdet_nano_keep.py'
SIDE, BATCH, EPOCH = 64, 2, 100  # pixels, new images a step, steps an epoch: those of all 200 images
WARM = 0.25  # share of the run after which resources are held still: caches, allocator and workers are settled
FLAT = 0.02  # of the memory: what it may grow by over the rest of the run
LOGS = ('.log', '.json', '.csv', '.jsonl')  # files that hold a line an interval


@dataclass(frozen=True)
class Sample:
    """What a run holds at one moment; memory in bytes, ``memory`` of the process, ``loaders`` of its workers."""

    iteration: int
    memory: int
    loaders: int
    files: int
    threads: int
    processes: int
    checkpoints: int
    others: int


@dataclass(frozen=True)
class Slope:
    """A straight line through samples: growth an iteration, its standard error, and the mean."""

    each: float
    error: float
    mean: float


def measure(iteration: int, work_dir: Path) -> Sample:
    """Look at this process, its children and its work folder.

    What is free and not yet given back to the system is no leak, so this process gives it back first.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    children = process.children(recursive=True)
    found = [path for path in work_dir.rglob('*') if path.is_file()]
    others = [path for path in found if path.suffix not in (*LOGS, '.pth')]
    return Sample(iteration, process.memory_full_info().uss, sum(each.memory_full_info().uss for each in children),
                  process.num_fds() + sum(each.num_fds() for each in children), process.num_threads(), len(children),
                  sum(path.suffix == '.pth' for path in found), len(others))


class WatchHook(Hook):
    """Takes a sample every so many iterations, where the run is at the same place of an epoch."""

    priority = 'LOWEST'

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.samples: list[Sample] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look."""
        if (runner.iter + 1) % self.interval == 0:
            self.samples.append(measure(runner.iter + 1, Path(runner.work_dir)))


def slope(samples: list[Sample], name: str) -> Slope:
    """The least-squares line of a quantity over iterations."""
    x = np.array([each.iteration for each in samples], dtype=float)
    y = np.array([getattr(each, name) for each in samples], dtype=float)
    moved = x - x.mean()
    each = float(moved @ y / (moved @ moved))
    rest = y - y.mean() - each * moved
    return Slope(each, sqrt(float(rest @ rest) / max(1, len(x) - 2) / float(moved @ moved)), float(y.mean()))


def settled(samples: list[Sample]) -> list[Sample]:
    """The samples after the run has warmed up."""
    return [each for each in samples if each.iteration > WARM * samples[-1].iteration]


def grown(samples: list[Sample]) -> list[str]:
    """What grew, a line each; nothing in a sound run.

    A quantity that is counted must not be above its largest value before: a leak of one an epoch is one too many.
    """
    late, lines = settled(samples), []
    span = late[-1].iteration - late[0].iteration
    for name in ('memory', 'loaders'):
        line = slope(late, name)
        if (line.each - 2 * line.error) * span > FLAT * line.mean:
            lines.append(f'{name} grows by {line.each:.0f} +- {line.error:.0f} bytes an iteration')
    half = len(late) // 2
    for name in ('files', 'threads', 'processes', 'checkpoints', 'others'):
        before, after = (max(getattr(each, name) for each in part) for part in (late[:half], late[half:]))
        if after > before:
            lines.append(f'{name} grew from {before} to {after}')
    return lines


def soak_config(iterations: int, work_dir: Path, epoch: int = EPOCH) -> Config:
    """The small model held to old pictures, at the smallest input; in short epochs it looks at few images."""
    cfg = Config.fromfile(CONFIG)
    cfg.load_from = str(work_dir / 'start_weights.pth')
    if not Path(cfg.load_from).is_file():
        import_keras(ROOT / 'weights/digits_source.h5', cfg.load_from, config=CONFIG, classes=CONFIG,
                     source_classes=ROOT / 'configs/mgdet_nano_source.py')
    cfg.stages = [dict(stage, epochs=iterations // epoch) for stage in cfg.stages]
    sets = [cfg.train_dataloader, cfg.val_dataloader, *(each.dataloader for each in cfg.val_cfg.others.values())]
    for loader in sets:
        loader.update(batch_size=BATCH if loader is cfg.train_dataloader else 16, num_workers=1)
        if epoch < EPOCH:
            loader.dataset.indices = epoch * BATCH
        for step in loader.dataset.pipeline:
            if step.type == 'Letterbox':
                step.scale = (SIDE, SIDE)
    cfg.train_cfg.val_interval = 1
    cfg.model.test_cfg.score_thr = 0.3
    cfg.work_dir = str(work_dir / 'run')
    ensure_embedded_data(cfg)
    return cfg


def soak(iterations: int, work_dir: Path, epoch: int = EPOCH) -> list[Sample]:
    """Train and watch."""
    work_dir.mkdir(parents=True, exist_ok=True)
    watch = WatchHook(max(1, epoch // 4))
    runner = Runner.from_cfg(soak_config(iterations, work_dir, epoch))
    runner.register_hook(watch)
    runner.train()
    return watch.samples


def report(samples: list[Sample]) -> str:
    """The figures in lines."""
    late = settled(samples)
    lines = [f'{samples[-1].iteration:,} iterations; iterations {late[0].iteration:,} to {late[-1].iteration:,}:']
    for name in ('memory', 'loaders'):
        line = slope(late, name)
        lines.append(f'{name:<12} {line.mean / 2**20:.1f} MiB, slope {line.each:+.0f} +- {line.error:.0f} bytes an '
                     f'iteration ({line.each * 1000 / line.mean:+.3%} in 1,000)')
    for name in ('files', 'threads', 'processes', 'checkpoints', 'others'):
        values = [getattr(each, name) for each in late]
        lines.append(f'{name:<12} {min(values)} to {max(values)}')
    return '\n'.join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--iters', type=int, default=2000, help='a multiple of an epoch (default 2,000)')
    parser.add_argument('--epoch', type=int, default=EPOCH, help='iterations of one, at most 100 (default)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'))
    parser.add_argument('--json', type=Path, help='all samples')
    args = parser.parse_args()
    samples = soak(args.iters, args.work_dir, args.epoch)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in samples]))
    print(report(samples))
    faults = grown(samples)
    print('\n'.join(faults) or 'nothing grew')
    return bool(faults)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
