"""Real steps of a run, measured in a process of its own: nothing of the run itself, its random state included, moves.

``python -m mgdet_plugin.engine.fit.probe WISH.json`` prints a JSON object a line, each as soon as it is known, so that
what was measured is there even where the process ends for want of memory.
"""
from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mgdet_plugin.common.errors import SHOW_ALL, UserError
from mgdet_plugin.plan.freezing import frozen_of, unwrap
from mgdet_plugin.plan.plan import start_of
from mgdet_plugin.plan.rules import ERRORS, WARNINGS

WARM, STEPS = 3, 24  # steps not counted; then at most so many
SHARE = 0.6  # of the memory that is free
_SHARE_OF_GPU = 0.9
_ENOUGH = 30.0  # seconds for the steps of a batch: a larger one is not tried
_MARK = '@measured '
_NUMBERS = count()


class Measured(Exception):
    """Ends a run that has done all it was for."""


class Stopwatch(Hook):
    """Ends a run after some steps.

    Args:
        steps: At most so many that count.
        seconds: Or as many as this takes.
        warm: Steps before those.
        whole: Whether an epoch's end and a validation are measured, too.
    """
    priority = 'LOWEST'

    def __init__(self, steps: int, seconds: float, warm: int = WARM, whole: bool = False) -> None:
        self.steps, self.seconds, self.warm, self.whole = steps, seconds, warm, whole
        self.times: list[float] = []
        self.found: dict[str, float] = {}

    def before_train_epoch(self, runner: Runner) -> None:
        """Note when the first epoch begins."""
        if not self.times:
            self.times.append(time.perf_counter())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Note when the step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        done = len(self.times) - 1 - self.warm
        last = batch_idx + 1 >= len(runner.train_dataloader)
        if done >= self.steps or (done > 0 and self.times[-1] - self.times[self.warm] > self.seconds) or last:
            self._finish(runner)

    def _finish(self, runner: Runner) -> None:
        """End the run with what a step takes and, where wished, an epoch's end and a validation."""
        skipped = min(self.warm, len(self.times) - 2)
        steps = len(self.times) - 1 - skipped
        self.found = dict(step=(self.times[-1] - self.times[skipped]) / steps, iterations=len(runner.train_dataloader),
                          first=self.times[skipped] - self.times[0])
        if self.whole:
            begun = time.perf_counter()
            runner.call_hook('after_train_epoch')
            self.found['checkpoint'] = time.perf_counter() - begun
            runner.train_loop._epoch += 1
            if runner.val_loop is not None:
                begun = time.perf_counter()
                runner.val_loop.run()
                self.found['validation'] = time.perf_counter() - begun
        raise Measured


def run_steps(cfg: Config, stage: int | None, watch: Stopwatch) -> dict[str, float]:
    """What a stopwatch finds in a run of one stage, with the seconds before its first epoch as ``build``."""
    cfg, number = copy.deepcopy(cfg), next(_NUMBERS)
    begun = time.perf_counter()
    if stage is not None:
        cfg.plan = dict(cfg.get('plan') or {}, start=start_of(cfg), allow=[*ERRORS, *WARNINGS])
        cfg.stages = [cfg.stages[stage]]
    cfg.train_cfg.pop('max_epochs' if stage is not None else 'end_epoch', None)
    hooks = cfg.get('default_hooks') or {}
    for name, hook in list(hooks.items()):
        if hook and hook.get('type') == 'DriftGuardHook':
            hooks[name] = None
        elif hook and name == 'checkpoint':
            hook.interval = 1
    cfg.experiment_name = f'measured-{os.getpid()}-{number}'
    if cfg.get('visualizer'):
        cfg.visualizer = dict(cfg.visualizer, name=cfg.experiment_name)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    with suppress(Measured):
        runner.train()
    return dict(watch.found, build=watch.times[0] - begun)


def measure_stages(cfg: Config, seconds: float) -> Iterator[dict[str, float]]:
    """What a step of each stage takes, by so many seconds of them; of the first also an epoch's end and a validation.
    """
    for stage in range(len(cfg.stages)):
        yield run_steps(cfg, stage, Stopwatch(STEPS, seconds, whole=stage == 0))


def measure_batches(cfg: Config, sizes: Sequence[int], share: float) -> Iterator[dict[str, float]]:
    """Highest memory of steps with batches of these sizes, one after the other, in the stage that trains most.

    It ends where the next one would not fit, going by the last two, or the last one did not.
    """
    limit, stage = free_memory(share), heaviest_stage(cfg)
    seen: list[tuple[int, int]] = []
    for size in sizes:
        if seen and _line(seen)[0] + _line(seen)[1] * size > limit:
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        cfg.train_dataloader.batch_size = size
        begun = time.perf_counter()
        try:
            found = run_steps(cfg, stage, Stopwatch(1, 0.0, warm=cfg.optim_wrapper.get('accumulative_counts', 1)))
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate" not in str(error):
                raise
            yield dict(batch=size, limit=limit, peak=float('inf'))
            return
        seen.append((size, highest_memory()))
        yield dict(batch=size, limit=limit, peak=seen[-1][1], iterations=found['iterations'])
        if seen[-1][1] > limit or found['iterations'] == 1 or time.perf_counter() - begun > _ENOUGH:
            return


def _line(seen: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Memory without a batch, and what an image adds, by the last two sizes."""
    if len(seen) == 1:
        return seen[0][1], 0.0
    (first, low), (last, high) = seen[-2:]
    slope = max(0.0, (high - low) / (last - first))
    return high - slope * last, slope


def heaviest_stage(cfg: Config) -> int | None:
    """The stage in which most weights train; None without stages."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from mgdet_plugin.plan.plan import build_plan
    if not cfg.get('stages'):
        return None
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    model = unwrap(MODELS.build(cfg.model))
    sizes = {name: each.numel() for name, each in model.named_parameters()}
    trained = [sum(size for name, size in sizes.items() if name not in frozen_of(stage, model).parameters)
               for stage in build_plan(cfg.stages)]
    return trained.index(max(trained))


def free_memory(share: float | None) -> float:
    """Bytes that a run may take: a share of what is free of the GPU, or of this machine or its control group."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] * (_SHARE_OF_GPU if share is None else share)
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text().splitlines())
    free = int(lines['MemAvailable'].split()[0]) * 1024
    group = Path('/sys/fs/cgroup')
    with suppress(OSError, ValueError):  # no group, or one without a limit
        free = min(free, int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text()))
    return free * (SHARE if share is None else share)


def highest_memory() -> int:
    """Highest memory so far: reserved on the GPU, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) * 1024


def measured(cfg: Config, wish: Mapping[str, Any]) -> list[dict[str, float]]:
    """What a process of its own measures of a config; what it had measured where it ran out of memory.

    Args:
        cfg: The whole config, its datasets and weights there.
        wish: The other arguments of :func:`measure_stages`, or of :func:`measure_batches`.

    Raises:
        UserError: It failed.
    """
    with TemporaryDirectory(prefix='mgdet-') as name:
        twin = copy.deepcopy(cfg)
        twin.work_dir = str(Path(name, 'run'))
        twin.dump(Path(name, 'config.py'))
        Path(name, 'wish.json').write_text(json.dumps(dict(config=str(Path(name, 'config.py')), **wish)))
        done = subprocess.run([sys.executable, '-m', __name__, str(Path(name, 'wish.json'))], capture_output=True,
                              text=True, check=False)
    found = [json.loads(line.removeprefix(_MARK)) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode and not ('sizes' in wish and found and done.returncode < 0):  # a signal: for want of memory
        if os.environ.get(SHOW_ALL):
            sys.stderr.write(done.stderr)
        said = (done.stderr.strip() or f'it ended with {done.returncode}').splitlines()[-1]
        raise UserError(f'steps of this run could not be measured: {said.removeprefix("error: ")}')
    return found


def main(path: str) -> None:
    """Measure what a file asks for."""
    wish = json.loads(Path(path).read_text())
    cfg = Config.fromfile(wish.pop('config'))
    for found in measure_batches(cfg, **wish) if 'sizes' in wish else measure_stages(cfg, **wish):
        print(f'{_MARK}{json.dumps(found)}', flush=True)
    for child in active_children():  # what loads images would keep this process's output open
        child.kill()
    os._exit(0)


if __name__ == '__main__':
    from mgdet_plugin.common.errors import user_errors_to_exit
    with user_errors_to_exit():
        main(sys.argv[1])
