"""The hook that sees untraining coming: baselines, bands, and what is done when a run leaves them."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from mmdet.registry import HOOKS
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.common.checkpoint_content import checks
from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import KEY, OLD, GuardRecord, Keep, Validation, keeps, kept_share
from mgdet_plugin.common.metric_names import AUTO
from mgdet_plugin.common.records import from_record, keep_lines, need
from mgdet_plugin.engine.hooks.keep_hook import KeepHook
from mgdet_plugin.engine.hooks.random_state_hook import saves_now
from mgdet_plugin.engine.hooks.whole_checkpoint_hook import WholeCheckpointHook
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.staged_run import staged_run
from mgdet_plugin.engine.transitions import save_last
from mgdet_plugin.guard.baselines import FULL, guarded_terms, measure_subset, scalars, subset_loader, take_baselines
from mgdet_plugin.guard.guard_actions import VALIDATION, GuardActions, times
from mgdet_plugin.guard.guard_options import FORGETTING, NAN, ROLLBACK, STOP, GuardOptions
from mgdet_plugin.guard.loss_watch import DRIFT, LossBlock, LossWatch
from mgdet_plugin.guard.rollback import keep_good
from mgdet_plugin.guard.training_watch import BAD_BATCHES, TrainingWatch
from mgdet_plugin.keep.start_weights import distances, save_start, start_state


@HOOKS.register_module()
class DriftGuardHook(Hook):
    """Hold a run's losses against those of the weights it started from.

    Before the first step it measures losses and metrics of the loaded weights and of a random start. Every validation
    is compared with them. In training the smoothed losses are watched: where a guarded one has risen above its mean of
    the stage's first iterations, losses are measured at once on a fixed subset of the validation set, and only that
    decides. A single high loss is a spike, a smoothed one far above its lowest value a divergence. Steps that were
    skipped for a number that is not finite are counted, and their files written to ``bad_batches.jsonl``.

    The band is guarded where all weights were pretrained (``plan.start='full'``); a random head has none to keep, so
    there spikes, divergence and NaN are.

    With the config's ``keep`` each validation is held against the share of the old domain's mean AP that must be left.

    ``drift``, ``forgetting``, ``spike``, ``divergence``, ``nan`` and ``mismatch`` each name one or several actions:
    'warn'; 'hold': the stage lasts an epoch longer and its schedule stands still meanwhile; 'lower_rate': by
    ``rate_factor``, for the rest of the run; 'rollback': to the last checkpoint that was in the band, or the start;
    'stop': the run ends as failed.

    Args:
        **options: See :class:`GuardOptions`.

    Raises:
        UserError: An argument is out of its range.
    """
    priority = 55  # after EMAHook has put the weights back, before LoggerHook and what decides about stages

    def __init__(self, **options: Any) -> None:
        self.options = GuardOptions.build(options)
        self._resumed: tuple[GuardRecord, LossWatch, LossBlock] | None = None
        self._inherited: GuardRecord | None = None
        self._new_classes: tuple[str | int, ...] = ()
        self._training: TrainingWatch | None = None  # once the run has begun
        self._start: Mapping[str, Tensor] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the record of a checkpoint to resume from, or the baselines of loaded weights."""
        kept = checkpoint.get(KEY)
        self._new_classes = new_classes_of(checkpoint)
        if kept is not None:
            record, watch, block = read_entry(kept, KEY)
            if runner._resume:
                self._resumed = record, watch, block
            else:
                self._inherited = record

    def before_train_epoch(self, runner: Runner) -> None:
        """Measure, before the first step of the run."""
        self._begun(runner)

    def _begun(self, runner: Runner) -> TrainingWatch:
        """The watch of the run; the first call measures a new run's baselines, or takes up those of a resumed one."""
        if self._training is not None:
            return self._training
        run = staged_run(runner)
        if run is None:
            raise UserError("DriftGuardHook needs a plan: set stages and train_cfg=dict(type='StagedTrainLoop'), or "
                            'take drift_guard out of default_hooks')
        loop = runner.val_loop if run.loop.val_begin <= runner.max_epochs else None
        loop = loop if isinstance(loop, LossValLoop) else None
        save_start(runner)
        try:
            self._start = start_state(runner)
        except UserError as error:
            runner.logger.warning(f'guard: {error}; the distance from the start is not followed')
        if self._resumed is None:
            record, losses, block = self._new_record(runner, run.plan.start, loop), LossWatch(), LossBlock()
        else:
            record, losses, block = self._resumed
            keep_lines(runner.work_dir, BAD_BATCHES, lambda entry: entry['iter'] <= runner.iter)
            record.limit, record.ended = self.options.limit, None
            if self.options.terms is not None:
                record.guarded = guarded_terms(record, self.options.terms)
        record.best, record.keep = _best_by(runner), _keep_summary(runner)
        if any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks):
            runner.logger.warning('guard: EarlyStoppingHook keeps no state in checkpoints, and goes by the figures of '
                                  'weights the guard has put back; plan.early_stopping does neither')
        if any(isinstance(hook, CheckpointHook) and not isinstance(hook, WholeCheckpointHook) and hook.save_best
               for hook in runner.hooks):
            runner.logger.warning("guard: mmengine's CheckpointHook keeps the best by figures of weights the guard has "
                                  "put back, too; type='WholeCheckpointHook' does not")
        run.loop.step_guard.optim.poisoned = record.poisoned
        subset = None
        if loop is not None and record.start == FULL:
            subset = subset_loader(loop, record.subset_images or self.options.images)
            if not record.subset:
                record.subset = measure_subset(runner, subset)
                record.subset_images = len(subset.dataset)  # type: ignore[arg-type]
        self._training = TrainingWatch(GuardActions(runner, run, record, self.options), losses, subset)
        self._training.block = block
        self._training.guard.write()
        return self._training

    def _new_record(self, runner: Runner, start: str, loop: LossValLoop | None) -> GuardRecord:
        """The record of a run that has none, with its baselines."""
        if runner.iter:
            runner.logger.warning('guard: the checkpoint holds no record of the guard, so the run is held against '
                                  'the weights it is resumed with')
        record = GuardRecord(start=start, limit=self.options.limit,
                             metric=next((name for name in _best_by(runner)[:1] if 'loss' not in name), ''))
        take_baselines(runner, loop, record, self._inherited, self.options, self._new_classes)
        if is_main_process():
            Path(runner.work_dir, BAD_BATCHES).unlink(missing_ok=True)  # an earlier run's
        return record

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to watch anew where a stage begins."""
        self._begun(runner).begin_stage()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        """Watch the losses, before anything is logged or saved."""
        training, loop = self._begun(runner), runner.train_loop
        training.guard.record.poisoned = loop.step_guard.optim.poisoned
        if loop.fault is not None:
            training.count_fault(loop.fault, data_batch)
        training.add(outputs or {})
        stops = loop.stopping and not is_distributed()  # then the block is saved: it must not be seen in what follows
        if training.block.count >= self.options.interval or (saves_now(runner) and not stops):
            training.look()

    def after_train_epoch(self, runner: Runner) -> None:
        """Look before the epoch's checkpoint."""
        self._begun(runner).look()

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Compare a validation with the baselines."""
        if staged_run(runner) is None:
            return  # a validation without training
        guard = self._begun(runner).guard
        record, values = guard.record, scalars(metrics or {})
        ratios = record.ratios(values)
        weights = distances(runner.model, self._start) if self._start is not None else {}
        for name, value in (*((f'drift/{name}', each) for name, each in ratios.items()),
                            *((f'weights/{part}', each) for part, each in weights.items())):
            runner.message_hub.update_scalar(f'val/{name}', value)
        record.validations.append(Validation(epoch=runner.epoch, iter=runner.iter, stage=guard.run.stage.name,
                                             metrics=values, ratios=ratios, weights=weights))
        share = kept_share(record, values) if record.keep else None
        guard.run.kept = None if share is None else (share, record.at_least)
        if share is not None:
            runner.message_hub.update_scalar('val/kept', share)
        rolled_back = ROLLBACK in self._judge(guard, values, ratios, share)
        guard.run.rolled_back = record.validations[-1].rolled_back = rolled_back
        record.best = record.best or _best_by(runner)  # 'auto' may have waited for the first figures
        guard.write()

    @staticmethod
    def _judge(guard: GuardActions, values: Mapping[str, float], ratios: Mapping[str, float],
               share: float | None) -> list[str]:
        """Keep a good validation's weights; act on a bad one, and return the actions.

        Out of the band none is good. One that keeps too little is, unless forgetting is to be rolled back.
        """
        record, runner = guard.record, guard.runner
        broken = [name for name, value in values.items() if 'loss' in name and not math.isfinite(value)]
        if broken:
            return guard.trouble(NAN, VALIDATION, {}, f'{", ".join(broken)} is not finite')
        guarded = {name: ratios[name] for name in record.guarded if name in ratios} if record.start == FULL else {}
        forgot = share is not None and not keeps(share, record.at_least)
        taken: list[str] = []
        if any(map(guard.is_over, guarded.values())):
            text = f"{times(guarded, record.limit)} times the loaded weights'"
            taken = guard.trouble(DRIFT, VALIDATION, guarded, text)
        elif not forgot or ROLLBACK not in guard.options.actions(FORGETTING):
            keep_good(runner)
            record.good = [runner.epoch, runner.iter]
            if ratios:
                runner.logger.info(f"guard: {times(ratios)} times the loaded weights'" + (
                    f', guarded at most {1 + record.limit:.2f}: {", ".join(guarded)}' if guarded else ''))
        if share is None:
            return taken
        name = record.mean_aps(OLD)[0]
        text = f"{share:.1%} of the loaded weights' {name} is left (at least {record.at_least * 100:.4g}%)"
        if not forgot:
            runner.logger.info(f'guard: {text}')
        elif not {ROLLBACK, STOP} & {*taken}:
            taken += guard.trouble(FORGETTING, VALIDATION, {name: share}, text)
        return taken

    def after_train(self, runner: Runner) -> None:
        """Take note of how the run ended, also where the run resumed had only that left to do."""
        if self._training is None and self._resumed is None:
            return
        guard = self._begun(runner).guard
        run, record = guard.run, guard.record
        last = run.progress.stage == len(run.plan.stages) - 1
        if run.loop.stop_reason is not None:
            record.ended = 'guard'
        elif run.progress.ended and last:
            record.ended = 'early_stopping'
        elif runner.epoch >= runner.max_epochs:
            record.ended = 'plan'
        record.best = record.best or _best_by(runner)
        if run.rolled_back:
            save_last(runner, again=True)  # the epoch's checkpoint holds what the run went back from
        if run.loop.stop_reason is not None:
            guard.write()

    def after_run(self, runner: Runner) -> None:
        """Write down how the run ended, last of all: a run that says it has ended is not gone on with."""
        if self._training is not None:
            self._training.guard.write()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        if self._training is not None:
            checkpoint[KEY] = dict(record=self._training.guard.record.to_plain(),
                                   watch=self._training.losses.to_plain(), block=asdict(self._training.block))


@checks(KEY)
def read_entry(kept: Any, place: str) -> tuple[GuardRecord, LossWatch, LossBlock]:
    """The record, the watch and the block of losses it is amid, of a checkpoint.

    Raises:
        Damage: They are none.
    """
    need(isinstance(kept, Mapping), place, kept, 'an object')
    return (GuardRecord.from_plain(kept.get('record')), LossWatch.from_plain(kept.get('watch')),
            from_record(LossBlock, {} if kept.get('block') is None else kept['block'], f'{place}.block'))


def _best_by(runner: Runner) -> list[str]:
    """Name and rule by which the best checkpoint is kept, where they are known."""
    for hook in runner.hooks:
        names = getattr(hook, 'key_indicators', None) if isinstance(hook, CheckpointHook) else None
        if names and names[0] != AUTO:
            return [names[0], hook.rules[0]]
    return []


def _keep_summary(runner: Runner) -> Keep:
    """What the run is held by; empty without ``keep``."""
    return next((cast(Keep, dict(hook.summary)) for hook in runner.hooks if isinstance(hook, KeepHook)), Keep())
