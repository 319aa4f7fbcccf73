"""Runs of a plan as one of two processes without a GPU, one after another; what each run went through is written down.

Called as ``python -m tests.support.ddp_run FOLDER DATA``; the environment says which process it is. Every run
of :data:`RUNS` leaves ``FOLDER/<name>-rank<n>.json`` and, in ``FOLDER/<work_dir>``, its checkpoints.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.dist import barrier, get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

import mgdet_plugin  # noqa: F401
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.launch import end_launched_process
from mgdet_plugin.engine.hooks.random_state_hook import random_state
from mgdet_plugin.plan.freezing import digests, unwrap
from tests.support.staged_run import FULL, HEAD, NECK, run, staged_config

UNTIL = dict(metric='table/value', patience=1, min_epochs=1)
LONG = [dict(HEAD, epochs=4, until=UNTIL, restore_best=True), dict(NECK, epochs=3, until=UNTIL), dict(FULL, epochs=1)]
SHORT = [dict(HEAD, epochs=1), NECK]
TABLES = (0.5, 0.4, 0.5, 0.6, 0.7, 0.8), (0.1, 0.2, 0.9, 0.8, 0.7, 0.6)
"""What each process measures in which epoch. By the first, stages 1 and 2 of LONG last 2 and 3 epochs; the second alone
would make it 4 and 2."""
EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02)
BY_ITERATION = dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=-1)
GROUPED = {'optim_wrapper.accumulative_counts': 3, 'train_dataloader.batch_size': 1}  # 4 iterations an epoch: 3 and 1


@HOOKS.register_module(force=True)
class ApartHook(Hook):
    """Take the two processes apart: each draws from a random state of its own and measures what its table says."""
    priority = 0

    def before_train(self, runner: Runner) -> None:
        torch.rand(1 + 1000 * get_rank())  # RandomStateHook, after this, puts back what a checkpoint holds

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        metrics['table/value'] = TABLES[get_rank()][runner.epoch - 1]


class Witness(Hook):
    """Note what the model is at moments, before any other hook and after all of them."""

    def __init__(self, first: bool, notes: list[dict[str, Any]]) -> None:
        self.priority: Any = 0 if first else 100  # type: ignore[misc]
        self.place, self.notes = ('first' if first else 'last'), notes

    def note(self, runner: Runner, moment: str, **more: Any) -> None:
        staged = next(hook for hook in runner.hooks if type(hook).__name__ == 'StagedUnfreezeHook')
        self.notes.append(dict(
            moment=f'{moment}, {self.place}', epoch=runner.epoch, iter=runner.iter, stage=staged.progress.stage,
            digests=digests(runner.model), **more))

    def before_train_epoch(self, runner: Runner) -> None:
        self.note(runner, 'epoch begins')

    def after_train_epoch(self, runner: Runner) -> None:
        self.note(runner, 'epoch ends')

    def after_train(self, runner: Runner) -> None:
        self.note(runner, 'run ends')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.note(runner, 'validated', metrics=dict(metrics or {}))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.place == 'first':
            self.notes.append(dict(moment='iteration', epoch=runner.epoch,
                                   images=[sample.img_id for sample in data_batch['data_samples']],
                                   old=[sample.kept_index for sample in data_batch['data_samples']
                                        if sample.get('kept')]))


@contextmanager
def frozen_before_wrapping() -> Iterator[None]:
    """The mistake: what stage 1 freezes has no gradient while DDP is built, and is thawed afterwards."""
    wrap = Runner.wrap_model

    def wrap_frozen(self: Runner, cfg: Any, model: torch.nn.Module) -> torch.nn.Module:
        frozen = [value for name, value in model.named_parameters() if not name.startswith('bbox_head.predict_convs')]
        for value in frozen:
            value.requires_grad_(False)
        wrapped = wrap(self, cfg, model)
        for value in frozen:
            value.requires_grad_(True)
        return wrapped

    with patch.object(Runner, 'wrap_model', wrap_frozen):
        yield


class Pair:
    """This process's side of the runs."""

    def __init__(self, folder: Path, data: Path, rank: int) -> None:
        self.folder, self.data, self.rank = folder, data, rank
        self.own = folder / f'configs{rank}'
        self.own.mkdir()

    def config(self, stages: list[dict], **options: Any) -> Config:
        """A config of two processes that share the images."""
        options = {'train_dataloader.batch_size': 2, **options}
        cfg = staged_config(self.own, self.data, stages, **options)
        cfg.launcher, cfg.find_unused_parameters = 'pytorch', True
        cfg.env_cfg.dist_cfg = dict(backend='gloo')
        cfg.custom_hooks = [dict(type='ApartHook'), *(cfg.get('custom_hooks') or [])]
        return cfg

    def run(self, name: str, cfg: Config, work_dir: str = '', **kwargs: Any) -> None:
        """Run and write down."""
        notes: list[dict[str, Any]] = []
        runner = run(cfg, self.folder / (work_dir or name), hooks=[Witness(True, notes), Witness(False, notes)],
                     **kwargs)
        model = unwrap(runner.model)
        assert is_model_wrapper(runner.model)
        torch.save(dict(state_dict=model.state_dict(), random_state=random_state()),
                   self.folder / f'{name}-rank{self.rank}.pth')
        record = dict(notes=notes, epochs=runner.epoch, parameters=[name for name, _ in model.named_parameters()])
        (self.folder / f'{name}-rank{self.rank}.json').write_text(json.dumps(record))
        barrier()  # the first process writes the files that the next run may go on from

    def all(self) -> None:
        """Every run."""
        long = self.config(LONG, custom_hooks=[EMA])
        self.run('whole', long)
        self.run('stopped', long, kill=('epoch', 4))
        self.run('resumed', long, 'stopped', resume=True)
        grouped = self.config(SHORT, custom_hooks=[BY_ITERATION], **GROUPED)
        self.run('grouped', grouped)
        for count in (5, 7):  # in the second epoch: two gradients of three wait, and none
            self.run(f'grouped-stopped{count}', grouped, kill=('iter', count))
            self.run(f'grouped-resumed{count}', grouped, f'grouped-stopped{count}', resume=True)
        self.run('two-seeds', self.config(SHORT[:1], **{'randomness.diff_rank_seed': True}))
        best = [dict(HEAD, epochs=2, until=UNTIL, restore_best=True), dict(NECK, epochs=1)]
        self.run('two-disks', self.config(best), f'two-disks{self.rank}')
        held = self.config([dict(HEAD, epochs=1), dict(FULL, epochs=1)], custom_hooks=[EMA], keep=dict(
            images=str(self.data.parent / 'old' / 'images')), **{'plan.allow': ['skipped-level']})
        self.run('held', held)
        self.run('held-stopped', held, kill=('epoch', 1))
        self.run('held-resumed', held, 'held-stopped', resume=True)
        with frozen_before_wrapping():
            self.run('mistake', self.config(SHORT, **{'default_hooks.staged_unfreeze.verify': False}))
            try:
                self.run('mistake-proven', self.config(SHORT))
            except UserError as error:
                (self.folder / f'refused-rank{self.rank}.txt').write_text(str(error))


if __name__ == '__main__':
    Pair(Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ['RANK'])).all()
    end_launched_process()
