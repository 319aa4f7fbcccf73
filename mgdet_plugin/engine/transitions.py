"""What happens at an edge between stages: proof, the best checkpoint, one set of statistics over the processes."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, all_reduce, barrier, is_distributed, master_only
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import nn

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.processes import on_first_rank
from mgdet_plugin.compat.console import SAID
from mgdet_plugin.engine.optim.moving_average import ema_hooks
from mgdet_plugin.engine.staged_run import StagedRun
from mgdet_plugin.plan.freezing import Frozen, digests, frozen_of, statistics_layers, unwrap
from mgdet_plugin.plan.plan import Stage
from mgdet_plugin.plan.progress import RECORD, Progress
from mgdet_plugin.plan.report import schedule_in_words, span_in_words, until_in_words

STAGE_BEST = 'stage{}_best.pth'  # in a run's folder, counted from 1
INTERRUPTED = 'interrupted.pth'  # in a run's folder, from a signal to the next checkpoint
LAST = 'last_checkpoint'
LEVELS = {2: 'the last layers of the head', 1: 'all but the backbone', 0: 'everything'}
"""Freeze level -> what trains."""


def prove(runner: Runner, name: str, frozen: Frozen, start: Mapping[str, str]) -> None:
    """Hold a model against the start of the stage ``name``, by hash, and its processes against each other.

    ``frozen`` is what the stage froze, ``start`` name -> hash of every tensor when it began; the log says what changed.

    Raises:
        UserError: In every process, if a frozen tensor changed in one, or the processes' weights differ.
    """
    model = unwrap(runner.model)
    now, held = digests(model), frozen.tensors(model)
    shared = Frozen(frozenset(name for name, _ in model.named_parameters()), statistics_layers(model)).tensors(model)
    seen = all_gather_object(([key for key in held if now[key] != start.get(key)],
                              {key: now[key] for key in shared}))
    moved: list[str] = next((each for each, _ in seen if each), [])
    if moved:
        raise UserError(f"stage '{name}': {len(moved)} of {len(held)} frozen tensors changed ({', '.join(moved[:3])}): "
                        'something else writes to them; look at the hooks of the config')
    apart = [key for key, value in seen[0][1].items() if any(other[key] != value for _, other in seen)]
    if apart:
        raise UserError(f"stage '{name}': {len(apart)} tensors differ between processes ({', '.join(apart[:3])}): were "
                        'parameters frozen before the model was wrapped?')
    trained = [key for key, _ in model.named_parameters() if key not in frozen.parameters]
    still = [key for key in trained if now[key] == start.get(key)]
    runner.logger.info(f"stage '{name}' proven by hash: {len(held)} frozen tensors bit-equal to its start, "
                       f'{len(trained) - len(still)} of {len(trained)} trained parameters changed')
    if still:
        runner.logger.warning(f"stage '{name}': trained, but unchanged: {', '.join(still[:3])}")


def log_stage(runner: Runner, run: StagedRun, frozen: Frozen) -> None:
    """Say in one line what a stage does, and warn of what the detector froze although the plan did not."""
    stage, model = run.stage, unwrap(runner.model)
    first, last = run.progress.first_epoch + 1, min(run.progress.end(run.plan), runner.max_epochs)
    begins = f', from {runner.epoch + 1} on' if runner.epoch >= first else ''
    runner.logger.info(f"stage {run.progress.stage + 1} of {len(run.plan.stages)} '{stage.name}', "
                       f'{span_in_words(first, last)}{begins}: {_training(model, stage, frozen)}; '
                       f'rate {schedule_in_words(stage)}; {_augmentation(stage)}{_holding(run)}{_ending(run)}',
                       extra=SAID)
    own = sorted(frozen.parameters - frozen_of(stage, model).parameters)
    if own:
        runner.logger.warning(f'{len(own)} parameters stay frozen by the model itself (frozen_stages or the like), '
                              f'though the plan trains them: {", ".join(own[:3])}, ...')


def _training(model: nn.Module, stage: Stage, frozen: Frozen) -> str:
    """What trains in a stage, and how much of the model that is."""
    sizes = {name: each.numel() for name, each in model.named_parameters()}
    trained = sum(size for name, size in sizes.items() if name not in frozen.parameters)
    what = ', '.join(stage.train) if stage.train is not None else LEVELS[stage.freeze_level] if (
        stage.freeze_level is not None) else f'all but {", ".join(stage.freeze or ()) or "nothing"}'
    return f'trains {what}, {trained:,} of {sum(sizes.values()):,} weights'


def _augmentation(stage: Stage) -> str:
    """The probabilities a stage sets."""
    probs = stage.step_probs()
    said = [f'{name} {prob:g}' if prob else f'no {name}' for name, prob in probs.items()]
    return ', '.join(said)


def _holding(run: StagedRun) -> str:
    """What of the old images a stage holds, in the end of a line."""
    keep, weight = run.plan.keep, run.plan.keep_weight(run.progress.stage)
    return f'; {keep.share:.0%} of each batch is old images, held with weight {weight:g}' if (
        keep is not None and keep.holds_images and weight) else ''


def _ending(run: StagedRun) -> str:
    """When a stage ends before its last epoch, in the end of a line."""
    until = run.plan.until(run.progress.stage)
    return f'; ends early by {until_in_words(until)}' if until is not None else ''


def save_as(runner: Runner, name: str) -> None:
    """Save the epoch just validated under a name in the run's folder."""
    runner.save_checkpoint(runner.work_dir, name, by_epoch=False, meta=dict(epoch=runner.epoch, iter=runner.iter))


@master_only
def _save_where_it_is(runner: Runner) -> None:
    save_as(runner, INTERRUPTED)
    content = str(Path(runner.work_dir, INTERRUPTED)).encode()
    write_together({Path(runner.work_dir, LAST): lambda stream: stream.write(content)})


def save_interrupted(runner: Runner) -> Path:
    """Save a run in the middle of an epoch, or before its validation, as what to go on from; the file's path."""
    _save_where_it_is(runner)
    barrier()  # a process that ends first makes a launcher end the others
    return Path(runner.work_dir, INTERRUPTED)


def restore_best(runner: Runner, progress: Progress) -> None:
    """Go on from the current stage's best checkpoint: weights, statistics and the optimizer's state.

    With a moving average the weights become the averaged ones, which were validated.
    """
    path = os.path.join(runner.work_dir, STAGE_BEST.format(progress.stage + 1))

    def read() -> tuple[dict, Any] | None:
        state, content = load_checkpoint(path) if progress.best is not None and os.path.isfile(path) else ({}, {})
        record = content.get(RECORD) or {}
        fits = all(record.get(key) == getattr(progress, key) for key in ('stage', 'best_epoch', 'best'))
        return (dict(state), content.get('optimizer')) if record and fits else None

    found = on_first_rank(read)
    if found is None:  # nothing, or another run's
        runner.logger.warning(f"{path} is not this stage's best checkpoint; the run goes on from its last weights")
        return
    state, optimizer = found
    unwrap(runner.model).load_state_dict(state, strict=True)
    if optimizer is not None:
        runner.optim_wrapper.load_state_dict(optimizer)
    runner.logger.info(f'restored the best of the stage: epoch {progress.best_epoch}, {progress.best} '
                       f'({os.path.basename(path)})', extra=SAID)


def save_last(runner: Runner, again: bool = False) -> None:
    """Save the last epoch as ``CheckpointHook`` would have, had it known that it is the last.

    If it was saved, then only with ``again``: the weights are others now.
    """
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch and (again or (hook.save_last and (
                hook.interval < 1 or runner.epoch % hook.interval))):
            hook._save_checkpoint_with_step(runner, runner.epoch, dict(epoch=runner.epoch, iter=runner.iter))


def share_statistics(runner: Runner) -> None:
    """Average the running statistics of what trains over the processes; frozen ones are equal and stay.

    mmengine's DDP leaves each process its own.
    """
    if not is_distributed():
        return
    learning = {f'{name}.{key}': buffer for name, module in statistics_layers(unwrap(runner.model)).items()
                if module.training for key, buffer in module.named_buffers(recurse=False) if buffer.is_floating_point()}
    for buffer in learning.values():
        all_reduce(buffer, 'mean')
    for hook in ema_hooks(runner):  # an averaged model is what is saved
        averages = hook.ema_model.module.state_dict()
        for name, statistic in learning.items():
            if hook.ema_model.update_buffers:  # averages of their own, of what each process saw
                all_reduce(averages[name], 'mean')
            else:
                averages[name].copy_(statistic)
