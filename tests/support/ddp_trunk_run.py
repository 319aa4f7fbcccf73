"""A stage with ``trunk_cache`` and without as one of two processes, and what counts the images its network sees.

Called as ``python -m tests.support.ddp_trunk_run FOLDER DATA``; leaves ``FOLDER/rank<n>.pth``.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.runner import Runner
from torch import Tensor, nn

from mgdet_plugin.compat.launch import end_launched_process
from mgdet_plugin.plan.freezing import unwrap
from tests.support.ddp_run import Pair
from tests.support.staged_run import HEAD, MomentHook, run

CLEAN = dict(HEAD, epochs=3, clean=True)
SAME_NECK = {'model.neck.type': 'MultiGridNeck'}  # in place of that which draws random numbers


class Counter(MomentHook):
    """How many images a network itself saw, and how many bytes were kept, at each moment of a run."""

    def __init__(self, model: Callable[[Runner], Any] = lambda runner: unwrap(runner.model)) -> None:
        self.model, self.seen = model, 0
        self.at_moment: dict[tuple[str, int], int] = {}
        self.kept: list[int | None] = []

    def before_train(self, runner: Runner) -> None:
        self.handle = self.model(runner).backbone.register_forward_hook(self.count)

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...], maps: Any) -> None:
        self.seen += len(inputs[0])

    def at(self, runner: Runner, moment: str, count: int) -> None:
        trunk: Any = unwrap(runner.model).trunk
        self.at_moment[moment, count] = self.seen
        self.kept.append(trunk and trunk.store.bytes)

    def after_train(self, runner: Runner) -> None:
        self.handle.remove()


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference of a weight."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in other)


if __name__ == '__main__':
    folder, rank = Path(sys.argv[1]), os.environ['RANK']
    pair, found = Pair(folder, Path(sys.argv[2]), int(rank)), {}
    for name, caching in (('cached', dict(where='file')), ('plain', None)):
        counter = Counter()
        runner = run(pair.config([CLEAN], **{**SAME_NECK, 'trunk_cache': caching}), folder / name, hooks=[counter])
        found[name] = dict(state=unwrap(runner.model).state_dict(),
                           later=counter.seen - counter.at_moment['epoch', 1])
        barrier()
    torch.save(found, folder / f'rank{rank}.pth')
    end_launched_process()
