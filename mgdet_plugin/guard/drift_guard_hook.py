"""The hook that sees untraining coming: baselines, bands, and what is done when a run leaves them."""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import KEY, Event, GuardRecord, StageStart, Validation, append_line
from mgdet_plugin.common.records import ratio
from mgdet_plugin.engine.hooks.random_state_hook import saves_now
from mgdet_plugin.engine.hooks.staged_unfreeze_hook import StagedUnfreezeHook
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.optim.step_guard import Fault, file_names, is_finite
from mgdet_plugin.engine.staged_run import staged_run
from mgdet_plugin.engine.transitions import save_last
from mgdet_plugin.guard.baselines import (
    guarded_terms,
    measure_subset,
    scalars,
    subset_loader,
    take_baselines,
)
from mgdet_plugin.guard.guard_actions import (
    ROLLBACK,
    STOP,
    TRAINING,
    VALIDATION,
    act,
    times,
)
from mgdet_plugin.guard.guard_options import MISMATCH, NAN, GuardOptions
from mgdet_plugin.guard.loss_watch import DIVERGENCE, DRIFT, SPIKE, Block, LossWatch, Sign
from mgdet_plugin.guard.rollback import GOOD, keep_good
from mgdet_plugin.keep.start_weights import distances, save_start, start_state
from mgdet_plugin.models.multigrid_loss import MultiGridLoss
from mgdet_plugin.plan.freezing import unwrap

BAD_BATCHES = 'bad_batches.jsonl'
FULL = 'full'
_EVENTS_KEPT = 1000


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

    ``drift``, ``spike``, ``divergence``, ``nan`` and ``mismatch`` each name one or several actions: 'warn'; 'hold': the
    stage lasts an epoch longer and its schedule stands still meanwhile; 'lower_rate': by ``rate_factor``, for the rest
    of the run; 'rollback': to the last checkpoint that was in the band, or the start; 'stop': the run ends as failed.

    Args:
        **options: See :class:`GuardOptions`.

    Raises:
        UserError: An argument is out of its range.
    """
    priority = 55  # after EMAHook has put the weights back, before LoggerHook and what decides about stages

    def __init__(self, **options: Any) -> None:
        self.options = GuardOptions.build(options)
        self.record: GuardRecord | None = None
        self.watch, self.block = LossWatch(), Block()
        self._inherited: GuardRecord | None = None
        self._begun = False
        self._loop: LossValLoop | None = None
        self._subset: DataLoader | None = None
        self._start: Mapping[str, Tensor] | None = None

    # ---- before the first step

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the record of a checkpoint to resume from, or the baselines of loaded weights."""
        kept = checkpoint.get(KEY)
        if not isinstance(kept, Mapping):
            return
        record = GuardRecord.from_plain(kept['record'])
        if runner._resume:
            self.record, self.watch = record, LossWatch.from_plain(kept['watch'])
        else:
            self._inherited = record

    def before_train_epoch(self, runner: Runner) -> None:
        """Measure, before the first step of the run."""
        self._begin(runner)

    def _begin(self, runner: Runner) -> None:
        """Measure the baselines of a new run, or take up those of a resumed one; once."""
        if self._begun:
            return
        self._begun = True
        loop = runner.val_loop if runner.train_loop.val_begin <= runner.max_epochs else None
        self._loop = loop if isinstance(loop, LossValLoop) else None
        save_start(runner)
        try:
            self._start = start_state(runner)
        except UserError as error:
            runner.logger.warning(f'guard: {error}; the distance from the start is not followed')
        if self.record is None:
            if runner.iter:
                runner.logger.warning('guard: the checkpoint holds no record of the guard, so the run is held against '
                                      'the weights it is resumed with')
            self.record = GuardRecord(start=self._hook(runner).run.plan.start, limit=self.options.limit,
                                      metric=next((name for name in _best_by(runner)[:1] if 'loss' not in name), ''))
            take_baselines(runner, self._loop, self.record, self._inherited, self.options)
            if is_main_process():
                Path(runner.work_dir, BAD_BATCHES).unlink(missing_ok=True)  # an earlier run's
        else:  # resumed
            self.record.limit, self.record.ended = self.options.limit, None
            if self.options.terms is not None:
                self.record.guarded = guarded_terms(self.record, self.options.terms)
        self.record.best = _best_by(runner)
        if any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks):
            runner.logger.warning('guard: EarlyStoppingHook keeps no state in checkpoints, and goes by the figures of '
                                  'weights the guard has put back; plan.early_stopping does neither')
        runner.train_loop.step_guard.optim.poisoned = self.record.poisoned
        if self._loop is not None and self.record.start == FULL:
            self._subset = subset_loader(self._loop, self.record.subset_images or self.options.images)
            if not self.record.subset:
                self.record.subset = measure_subset(runner, self._subset)
                self.record.subset_images = len(self._subset.dataset)  # type: ignore[arg-type]
        self._write(runner)

    # ---- training

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Begin to watch anew where a stage begins."""
        record, run = self._known, self._hook(runner).run
        progress = run.progress
        if record.stages and record.stages[-1].index == progress.stage:
            return
        self.watch, self.block = LossWatch(), Block()
        record.stages.append(StageStart(index=progress.stage, name=run.stage.name,
                                        first_epoch=progress.first_epoch, first_iter=progress.first_iter))
        self._write(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Any] | None = None) -> None:
        """Watch the losses, before anything is logged or saved."""
        loop = runner.train_loop
        self._known.poisoned = loop.step_guard.optim.poisoned
        if loop.fault is not None:
            self._count_fault(runner, loop.fault, data_batch)
        if outputs and all(is_finite(value) for value in outputs.values()):
            self._known.bad_in_row = 0
            self.block.add({name: float(value.detach() if isinstance(value, Tensor) else value)
                            for name, value in outputs.items() if 'loss' in name})
        if self.block.count >= self.options.interval or saves_now(runner):
            self._look(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look before the epoch's checkpoint."""
        self._look(runner)

    def _look(self, runner: Runner) -> None:
        """Take what the block holds, and see to its signs."""
        if not self.block.count:
            return
        count = self.block.count
        means, peak = self.block.over_processes(next(unwrap(runner.model).parameters()).device)
        self.block = Block()
        spike = self.watch.spike(peak, self.options.spike_factor)
        self.watch.take(means, count, self.options.window)
        guarded = self._known.guarded if self._subset is not None else ()
        self._compare_with_validation(runner)
        for sign in (*([spike] if spike else []),
                     *list(self.watch.signs(self.options.divergence_factor, self._known.limit, guarded))):
            if self._heed(runner, sign):
                break

    def _compare_with_validation(self, runner: Runner) -> None:
        """Hold a run's first training losses against those of validation images, once.

        Both are of the loaded weights and of images of one kind. Far apart they mean that the training labels are not
        those the weights know, or that the loss is another one.
        """
        record = self._known
        if record.compared or not self.watch.reference or record.start != FULL or not record.pretrained:
            return
        record.compared = True
        losses = [each for each in unwrap(runner.model).modules() if isinstance(each, MultiGridLoss)]
        if any(each.normalizers != ('batch', ) for each in losses):
            return  # then the two are not the same quantity
        ratios = {name: self.watch.reference[name] / record.pretrained[f'val/{name}'] for name in record.guarded
                  if record.pretrained.get(f'val/{name}') and name in self.watch.reference}
        if any(ratio > self.options.mismatch_factor for ratio in ratios.values()):
            self._trouble(runner, MISMATCH, TRAINING, ratios, f'the first training losses are {times(ratios)} times '
                          'those of validation images: labels in another order than the weights have them, images '
                          'without their boxes, or loss scales and normaliser that are not theirs')

    def _heed(self, runner: Runner, sign: Sign) -> bool:
        """See to a sign; returns whether the weights were put back or the run ends."""
        values, text = sign.values, f'{times(sign.values)} times its smoothed value'
        if sign.kind == DIVERGENCE:
            text = f'smoothed {times(values)} times its lowest of the stage'
        elif sign.kind == DRIFT:
            values = self._measured_drift(runner)
            images = len(self._subset.dataset) if self._subset is not None else 0  # type: ignore[arg-type]
            text = f"{times(values, self._known.limit)} times the loaded weights' on {images} validation images"
            if not any(self._is_over(values[name]) for name in self._known.guarded):
                runner.logger.info(f"guard: training losses are {times(sign.values)} times those of the stage's first "
                                   f'iterations; measured they are in the band: {text}')
                self.watch.accept()
                return False
        taken = self._trouble(runner, sign.kind, TRAINING, values, text)
        if ROLLBACK in taken:
            self.watch.forget()
        elif sign.kind != SPIKE:
            self.watch.accept()
        return ROLLBACK in taken or STOP in taken

    def _measured_drift(self, runner: Runner) -> dict[str, float]:
        """The losses on the subset over those of the loaded weights."""
        assert self._subset is not None
        now = measure_subset(runner, self._subset)
        return {name: ratio(now[f'val/{name}'], self._known.subset[f'val/{name}']) for name in self._known.guarded}

    def _count_fault(self, runner: Runner, fault: Fault, batch: Any) -> None:
        """Write down a skipped step, and act when there are too many in a row."""
        record = self._known
        record.bad_steps += 1
        record.bad_in_row += 1
        files = file_names(batch.get('data_samples') or ()) if isinstance(batch, Mapping) else ()
        seen: list[Any] = [(fault.names, files)]
        if is_distributed():
            seen = all_gather_object(seen[0])
        where = dict(epoch=runner.epoch + 1, iter=runner.iter + 1, kind=fault.kind)
        if is_main_process():
            for rank, (names, paths) in enumerate(seen):
                append_line(runner.work_dir, BAD_BATCHES, dict(where, rank=rank, names=names, files=paths))
        names = next((names for names, _ in seen if names), ())
        text = f'the {fault.kind} is not finite ({", ".join(names[:3]) or "in no named place"}): the step is skipped'
        if record.bad_in_row < self.options.nan_patience:
            self._note(runner, NAN, TRAINING, {}, ['skip'], f'{text}; files of the batch are in {BAD_BATCHES}')
            return
        count, record.bad_in_row = record.bad_in_row, 0
        if ROLLBACK in self._trouble(runner, NAN, TRAINING, {}, f'{text}, {count} in a row'):
            self.watch.forget()
            self.block = Block()

    # ---- validation

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> None:
        """Compare a validation with the baselines."""
        if staged_run(runner) is None:
            return  # a validation without training
        self._begin(runner)
        record, values = self._known, scalars(metrics or {})
        ratios = record.ratios(values)
        weights = distances(runner.model, self._start) if self._start is not None else {}
        for name, value in (*((f'drift/{name}', each) for name, each in ratios.items()),
                            *((f'weights/{part}', each) for part, each in weights.items())):
            runner.message_hub.update_scalar(f'val/{name}', value)
        record.validations.append(Validation(epoch=runner.epoch, iter=runner.iter, stage=self._stage_name(runner),
                                             metrics=values, ratios=ratios, weights=weights))
        rolled_back = ROLLBACK in self._judge(runner, values, ratios)
        self._hook(runner).run.rolled_back = record.validations[-1].rolled_back = rolled_back
        self._write(runner)

    def _judge(self, runner: Runner, values: Mapping[str, float], ratios: Mapping[str, float]) -> list[str]:
        """Keep a good validation's weights; act on a bad one, and return the actions."""
        record = self._known
        broken = [name for name, value in values.items() if 'loss' in name and not math.isfinite(value)]
        guarded = {name: ratios[name] for name in record.guarded if name in ratios} if record.start == FULL else {}
        if broken:
            return self._trouble(runner, NAN, VALIDATION, {}, f'{", ".join(broken)} is not finite')
        if any(self._is_over(ratio) for ratio in guarded.values()):
            return self._trouble(runner, DRIFT, VALIDATION, dict(guarded),
                                 f"{times(guarded, record.limit)} times the loaded weights'")
        keep_good(runner)
        record.good = [runner.epoch, runner.iter]
        if ratios:
            runner.logger.info(f"guard: {times(ratios)} times the loaded weights'" + (
                f', guarded at most {1 + record.limit:.2f}: {", ".join(guarded)}' if guarded else ''))
        return []

    def after_train(self, runner: Runner) -> None:
        """Write down how the run ended."""
        run, record = self._hook(runner).run, self.record
        if record is None or not self._begun:
            return
        last = run.progress.stage == len(run.plan.stages) - 1
        if runner.train_loop.stop_reason is not None:
            record.ended = 'guard'
        elif run.progress.ended and last:
            record.ended = 'early_stopping'
        elif runner.epoch >= runner.max_epochs:
            record.ended = 'plan'
        self._write(runner)
        if run.rolled_back:
            save_last(runner, again=True)  # the epoch's checkpoint holds what the run went back from

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        if self.record is not None:
            checkpoint[KEY] = dict(record=self.record.to_plain(), watch=self.watch.to_plain())

    # ---- small things

    def _trouble(self, runner: Runner, kind: str, where: str, values: Mapping[str, float], text: str) -> list[str]:
        """Take the actions for a kind of trouble and write it down; returns their names."""
        taken, said = act(runner, self._hook(runner), self._known, self.options.action_limits,
                          self.options.actions(kind))
        line = self._note(runner, kind, where, values, taken, '; '.join((text, *said)))
        if STOP in taken:
            good = self._known.good
            back = f'those of epoch {good[0]}, {GOOD}' if good else 'those it started from'
            runner.train_loop.stop(f'the guard has stopped the run: {line}; the last weights in the band are {back}')
        return taken

    def _note(self, runner: Runner, kind: str, where: str, values: Mapping[str, float], taken: list[str],
              text: str) -> str:
        """Log an event and keep it."""
        training = where == TRAINING
        epoch, iteration = runner.epoch + training, runner.iter + training
        line = f'{kind} in {where}, epoch {epoch}, iteration {iteration}: {text}'
        runner.logger.warning(f'guard: {line}')
        if len(self._known.events) < _EVENTS_KEPT:
            self._known.events.append(Event(epoch=epoch, iter=iteration, stage=self._stage_name(runner), kind=kind,
                                            where=where, values=dict(values), actions=taken, text=line))
        self._write(runner)
        return line

    def _is_over(self, ratio: float) -> bool:
        return not ratio <= 1 + self._known.limit  # NaN is over, too

    def _stage_name(self, runner: Runner) -> str:
        return self._hook(runner).run.stage.name

    def _write(self, runner: Runner) -> None:
        if is_main_process():
            self._known.write(runner.work_dir)

    @property
    def _known(self) -> GuardRecord:
        assert self.record is not None
        return self.record

    @staticmethod
    def _hook(runner: Runner) -> StagedUnfreezeHook:
        """What carries out the plan.

        Raises:
            UserError: There is none.
        """
        for hook in runner.hooks:
            if isinstance(hook, StagedUnfreezeHook):
                return hook
        raise UserError("DriftGuardHook needs a plan: set stages and train_cfg=dict(type='StagedTrainLoop'), or take "
                        'drift_guard out of default_hooks')


def _best_by(runner: Runner) -> list[str]:
    """Name and rule by which the best checkpoint is kept, where they are known."""
    for hook in runner.hooks:
        names = getattr(hook, 'key_indicators', None) if isinstance(hook, CheckpointHook) else None
        if names and names[0] != 'auto':
            return [names[0], hook.rules[0]]
    return []
