"""The last good checkpoint of a run: kept, and gone back to."""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.processes import on_first_rank
from mgdet_plugin.engine.optim.moving_average import ema_hooks, restart_ema
from mgdet_plugin.engine.transitions import save_as
from mgdet_plugin.keep.start_weights import load_start, run_name
from mgdet_plugin.plan.freezing import unwrap
from mgdet_plugin.plan.progress import RECORD

GOOD = 'last_good.pth'


@master_only
def keep_good(runner: Runner) -> None:
    """Keep the epoch just validated as ``last_good.pth``: the checkpoint saved of it under a second name, if there is.
    """
    target = Path(runner.work_dir) / GOOD
    saved = _saved_now(runner)
    if saved is None:
        save_as(runner, GOOD)
        return
    temporary = target.with_name(f'.{GOOD}.{os.getpid()}.tmp')
    temporary.unlink(missing_ok=True)
    try:
        os.link(saved, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(saved, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # two names of one file: where the target was one already, nothing is replaced


def _saved_now(runner: Runner) -> Path | None:
    """The file ``CheckpointHook`` has just saved of this epoch."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch:
            path = Path(str(getattr(hook, 'last_ckpt', None) or ''))
            if hook.save_optimizer and path.name == hook.filename_tmpl.format(runner.epoch) and path.is_file():
                return path
    return None


def roll_back(runner: Runner, good: list[int] | None) -> str:
    """Put back weights, running statistics, averages and the optimizer's state of the last good checkpoint.

    Epochs and iterations go on counting, so rates and stages follow the plan. Before any good checkpoint the weights
    are those of the start, the optimizer's state is empty and averages begin anew. Every process calls this.

    Args:
        runner: The runner.
        good: Epoch and iteration of the checkpoint, or None for the start.

    Returns:
        What it went back to, in words.

    Raises:
        UserError: In every process, if the file is missing or of another run.
    """
    read = on_first_rank(lambda: _read(runner, good)) if good else None
    runner.optim_wrapper.zero_grad()
    if read is None:
        unwrap(runner.model).load_state_dict(load_start(runner), strict=True)
        runner.optim_wrapper.optimizer.state.clear()
        restart_ema(runner)
        return 'the start'
    epoch, state, averaged, steps, optimizer = read
    unwrap(runner.model).load_state_dict(state, strict=True)
    for hook in ema_hooks(runner) if averaged else ():
        hook.ema_model.module.load_state_dict(averaged, strict=True)
        hook.ema_model.steps.copy_(steps)
    runner.optim_wrapper.load_state_dict(optimizer)
    return f'epoch {epoch}'


def _read(runner: Runner, good: list[int]) -> tuple[int, dict, dict | None, Any, Any] | None:
    """Epoch, weights, their averages, the averages' count and the optimizer's state; None for the start.

    A killed run may have gone further than the checkpoint it was resumed from. Then the file is a later one, and what
    this run does not have behind it is not gone back to.
    """
    path = Path(runner.work_dir) / GOOD
    if not path.is_file():
        raise UserError(f'{path} is not there, so the guard cannot roll back; start the run anew')
    state, content = load_checkpoint(path)
    meta, run = content.get('meta') or {}, (content.get(RECORD) or {}).get('run')
    if run != run_name(runner) or meta['epoch'] < good[0]:
        raise UserError(f'{path} is of epoch {meta.get("epoch")} of the run {run}, and this run, {run_name(runner)}, '
                        f'knows its epoch {good[0]} as the last good one; start the run anew')
    if meta['epoch'] > runner.epoch:
        runner.logger.warning(f'guard: {path} is of epoch {meta["epoch"]}, which this run has not come to; it goes '
                              'back to the start')
        return None
    averages = content.get('ema_state_dict')
    if not averages:
        return meta['epoch'], dict(state), None, None, content['optimizer']
    # mmengine saves the averages as the weights, and the weights as the averages
    trained = {key.removeprefix('module.'): value for key, value in averages.items() if key.startswith('module.')}
    return meta['epoch'], {**state, **trained}, dict(state), averages['steps'], content['optimizer']
