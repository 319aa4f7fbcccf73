"""The door to all benchmarks: speed against named peers, and learning, which trains for an hour or so.

What a suite needs is imported when it runs.
"""
from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together


@dataclass(frozen=True)
class LearningOptions:
    """What a benchmark of learning is told.

    Attributes:
        folder: Where it gets a folder of its own, made where it is missing.
        jobs: Runs at once.
        seeds: One run of each way a seed.
        only: Names of what to run; none means all.
        photographs: Folder of photographs that have nothing to do with what the weights know.
        bccd: Folder of the blood cells, as data/bccd is laid out.
        raccoon: Folder of the raccoons, with images and their annotations in VOC's form.
        amp: Train in mixed precision: on a CPU with units for bfloat16 about twice as fast.

    Raises:
        UserError: A value is out of its range.
    """
    folder: Path
    jobs: int
    seeds: tuple[int, ...]
    only: tuple[str, ...] = ()
    photographs: Path | None = None
    bccd: Path | None = None
    raccoon: Path | None = None
    amp: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f'--jobs must be at least 1, got {self.jobs}')
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise UserError('--seeds must be different whole numbers from 0, got '
                            + (' '.join(map(str, self.seeds)) or 'none'))

    @property
    def precision(self) -> dict[str, Any]:
        """Options of a config for how its run computes."""
        return {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 'dynamic'} if self.amp else {}


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
    import torch
    rows = []
    for name in names or (*SUITES, *ROWS):
        if name in ROWS:
            rows += ROWS[name]()
            continue
        peer, ours, theirs = SUITES[name](torch.device(device))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats + 1):
            for case, seconds in zip((ours, theirs), times):
                seconds.append(_seconds(case, device.startswith('cuda')))
        mine, other = (statistics.median(seconds[1:]) for seconds in times)
        rows.append(dict(suite=name, peer=peer, device=device, threads=torch.get_num_threads(), ours_s=mine,
                         peer_s=other, ratio=mine / other))
    return rows


def write_json(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Write the rows, whole or not at all."""
    write_together({Path(path): methodcaller('write', (json.dumps(list(rows), indent=1) + '\n').encode())})


def _seconds(case: Callable[[], Any], on_gpu: bool) -> float:
    start = time.perf_counter()
    case()
    if on_gpu:
        import torch
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _late(place: str) -> Callable[..., Any]:
    """A function that is looked up when it is called."""
    return lambda *arguments: resolve_name(f'benchmarks.{place}')(*arguments)


SUITES: dict[str, Callable[..., Any]] = {
    'inference': _late('speed:inference'),
    'train_step': _late('speed:train_step'),
    'suppression': _late('speed:suppression'),
    'suppression_cells': _late('speed:suppression_cells'),
    'suppression_classes': _late('speed:suppression_classes'),
    'validation': _late('guard_benchmark:validation'),
    'guarded_step': _late('guard_benchmark:guarded_step'),
}
"""Name -> what gives the peer's name and two cases for a torch device: ours and the peer's."""
ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    'import': _late('import_benchmark:import_rows'), 'start': _late('start_benchmark:start_rows'),
    'keep': _late('keep_benchmark:keep_rows'), 'deploy': _late('deploy_benchmark:deploy_rows'),
    'amp_step': _late('training.steps:amp_rows'), 'stage_step': _late('training.steps:stage_rows'),
    'targets': _late('training.targets:target_rows'), 'scaling': _late('training.scaling:scaling_rows'),
    'keep_step': _late('training.keep_step:keep_step_rows'),
    'stage1_cache': _late('training.trunk_cache:stage1_cache_rows'),
    'pipeline': _late('training.pipeline:pipeline_rows')}
"""Suites of several rows; the sides of import, start, keep and stage_step run in processes of their own."""
LEARNING: dict[str, Callable[[LearningOptions], str]] = {
    'accuracy': _late('accuracy:accuracy'), 'untraining': _late('untraining:untraining'),
    'new_classes': _late('new_classes:new_classes')}
"""Suites that train: not among those that run when none is named; each writes into a folder and returns its report."""
