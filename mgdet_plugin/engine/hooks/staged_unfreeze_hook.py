"""The hook that carries out a plan."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.checkpoint_check import RECORD, stages_before
from mgdet_plugin.engine.hooks.random_state_hook import saves_now
from mgdet_plugin.engine.optim.accumulation import pending_gradients, restore_gradients, start_counting
from mgdet_plugin.engine.optim.moving_average import FrozenAverage, ema_hooks, restart_ema
from mgdet_plugin.engine.optim.staged_lr_scheduler import StagedLR
from mgdet_plugin.engine.optim.staged_optim_wrapper_constructor import check_groups
from mgdet_plugin.engine.transitions import best_name, prove, restore_best, save_last, share_statistics
from mgdet_plugin.plan.freezing import (
    Frozen,
    built_frozen,
    digests,
    freeze,
    frozen_by_itself,
    hold,
    resolve,
    unwrap,
)
from mgdet_plugin.plan.plan import Plan, Stage, build_plan
from mgdet_plugin.plan.progress import Progress
from mgdet_plugin.plan.rules import check_rules, history_entry, rate_limit, refuse_broken


@HOOKS.register_module()
class StagedUnfreezeHook(Hook):
    """Freeze, thaw, set rates and change stages as the plan says, and log every transition in one line.

    At an edge, in this order: what was frozen is proven bit-equal to the stage's start, by hash; the stage's best
    checkpoint is loaded if asked for; the next stage's parts are thawed; the moving average starts anew if asked
    for; rates and augmentation follow. Adam's moments are kept. Whether a metric ends a stage is decided in the first
    process and told to all.

    Args:
        stages: The plan, where the config has no ``stages``.
        verify: Prove by hash that frozen tensors did not change, at each edge and at the end.

    Raises:
        UserError: If the plan is wrong or breaks a rule of the guide.
    """
    priority = 'LOW'  # after EMAHook has put the weights back

    def __init__(self, stages: Sequence[Mapping[str, Any]] | None = None, verify: bool = True) -> None:
        self.stages, self.verify = stages, verify
        if stages is not None:
            build_plan(stages)  # refuses what is wrong
        self.plan: Plan | None = None
        self.progress: Progress | None = None
        self.frozen = Frozen(frozenset(), {})
        self._record: dict[str, Any] = {}
        self._history: list[dict[str, Any]] = []
        self._gradients: list[dict[str, Tensor]] = []  # that wait for their step, of each process
        self._applied = -1
        self._built: frozenset[str] = frozenset()
        self._average: FrozenAverage | None = None
        self._waiting: list[dict[str, Tensor]] = []

    # ---- before the first iteration

    def read_plan(self, runner: Runner) -> Plan:
        """Read the plan from the runner's config; stages given to the hook are put there.

        Raises:
            UserError: If there is none, it is wrong, or the config and the hook have different ones.
        """
        stages = runner.cfg.get('stages')
        if self.stages is not None and stages and build_plan(self.stages) != build_plan(stages):
            raise UserError('the config has stages, and StagedUnfreezeHook has others; give them once, in the config')
        if not stages:
            if self.stages is None:
                raise UserError('StagedUnfreezeHook found no stages; set stages=[dict(name=..., epochs=..., lr=..., '
                                'freeze_level=...)] in the config')
            runner.cfg.stages = [dict(stage) for stage in self.stages]
        self.plan = Plan.from_cfg(runner.cfg)
        return self.plan

    def before_run(self, runner: Runner) -> None:
        """Read the plan."""
        if runner._train_loop is not None:
            self.read_plan(runner)
        self._applied, self._built = -1, built_frozen(runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the record of a checkpoint to resume from, or what loaded weights went through before."""
        if runner._resume:
            record = checkpoint.get(RECORD)
            self._record = dict(record) if isinstance(record, Mapping) else {}
            self._gradients = list(checkpoint.get('gradients') or ())
            check_groups(runner.optim_wrapper, checkpoint)
        else:
            self._history = [dict(entry) for entry in stages_before(checkpoint)]

    def before_train(self, runner: Runner) -> None:
        """Find where the run is, freeze accordingly and give rates and sampler the plan."""
        if self._record:
            self.progress = Progress.from_plain(self._record, self._plan)
            self._fit_steps(runner)
            if self.progress.start and not (runner.cfg.get('plan') or {}).get('start'):
                self.plan = dataclasses.replace(self._plan, start=self.progress.start)
        else:
            self.progress = Progress.at(self._plan, runner.epoch, self._steps(runner, 0))
            self.progress.history, self.progress.start = self._history, self._plan.start
            self.progress.run = f'{runner.timestamp}-{os.urandom(4).hex()}'
        plan, loop = self._plan, runner.train_loop
        for line in refuse_broken(check_rules(plan, runner.cfg, unwrap(runner.model), self.progress.inherited())):
            runner.logger.warning(line)
        self._check_wrapper(runner)
        self._set_length(runner, runner.epoch)
        sampler = getattr(loop, 'batch_sampler', None)
        if sampler is not None:
            seeds = [runner.seed]
            broadcast_object_list(seeds, 0)  # with diff_rank_seed each process has its own
            sampler.set_seed(seeds[0])  # on resume the checkpoint's
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        scaled = bool((runner.auto_scale_lr or {}).get('enable'))
        schedulers = self._schedulers(runner)
        if not schedulers and hasattr(loop, 'set_length'):
            raise UserError("the rates of the stages would not be used: set param_scheduler=[dict(type='StagedLR')]")
        if any(stage.restart_ema for stage in plan.stages) and not ema_hooks(runner):
            raise UserError("a stage has restart_ema, and there is no moving average: add dict(type='EMAHook') to "
                            'custom_hooks, or take restart_ema out')
        for scheduler in schedulers:
            scheduler.follow(plan, rate_limit(plan), accumulated if scaled else 1,
                             runner.cfg.train_dataloader.batch_size if scaled else None)
        self._apply(runner)

    def is_validation_missing(self, runner: Runner) -> bool:
        """Whether the run was interrupted between an epoch and its validation."""
        return self._progress.validated < runner.epoch and self._is_between_epochs(runner)

    # ---- epochs and iterations

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass an edge if the stage is over; set rates, sampler and counters of the epoch."""
        plan, progress = self._plan, self._progress
        while progress.is_over(plan, runner.epoch) and progress.stage + 1 < len(plan.stages):
            self._pass_edge(runner)
        self._apply(runner)
        skip = 0 if self._is_between_epochs(runner) else self._batches_done(runner)
        if hasattr(runner.train_loop, 'start_epoch'):
            runner.train_loop.start_epoch(progress.stage, skip)
        steps = self._steps(runner, progress.stage)
        if not skip:  # within an epoch the schedule goes on
            progress.stood = min(progress.held, runner.epoch - progress.first_epoch)
        for scheduler in self._schedulers(runner):
            scheduler.enter(progress.stage, progress.first_iter + progress.stood * steps, steps, runner.iter,
                            progress.damping)
        progress.steps = steps
        start_counting(runner.optim_wrapper, skip, steps)
        if get_rank() < len(self._gradients):
            restore_gradients(unwrap(runner.model), self._gradients[get_rank()])
        self._gradients = []
        if not progress.digests:
            progress.digests = digests(runner.model) if self.verify else {}
        self._average = FrozenAverage.of(runner, self.frozen)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Hold the frozen statistics: the loop calls ``model.train()`` after ``before_train_epoch``."""
        if any(norm.training for norm in self.frozen.norms.values()):
            hold(self.frozen.norms.values())
        self._log_rates(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Make the processes' statistics one before an iteration's checkpoint."""
        if saves_now(runner):
            self._make_exact(runner)
            waiting = pending_gradients(runner.optim_wrapper, unwrap(runner.model))
            self._waiting = all_gather_object(waiting) if waiting and is_distributed() else []

    def after_train_epoch(self, runner: Runner) -> None:
        """Make the processes' statistics one: mmengine's DDP does not share them."""
        self._make_exact(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Decide about the stage's end, once for all processes, and keep its best checkpoint."""
        if self.progress is None:  # a validation without training
            return
        plan, progress = self._plan, self.progress
        decided: list[Any] = [progress.to_plain(), progress.after_validation(plan, runner.epoch, metrics or {})]
        decided[0] = progress.to_plain()
        broadcast_object_list(decided, 0)
        self.progress = Progress.from_plain(decided[0], plan)
        stage = self.progress.current(plan)
        if decided[1] and stage.restore_best:
            runner.save_checkpoint(runner.work_dir, best_name(self.progress.stage), by_epoch=False,
                                   meta=dict(epoch=runner.epoch, iter=runner.iter))
        until = plan.until(self.progress.stage)
        if self.progress.ended and until is not None:
            runner.logger.info(f"stage '{stage.name}' ends by {until.metric}: {self.progress.misses} validations "
                               f'without improvement on {self.progress.best} of epoch {self.progress.best_epoch}')
        self._set_length(runner, runner.epoch)

    def after_train(self, runner: Runner) -> None:
        """Prove the last stage, too, and leave a checkpoint that says the run is over."""
        self._prove(runner)
        if self._progress.ended:  # decided after CheckpointHook asked whether this is the last epoch
            save_last(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the record, what a later run must know of this stage, and gradients that wait for their step."""
        if self.progress is None:
            return
        record = self.progress.to_plain()
        record['entry'] = self._entry(runner, checkpoint['meta']['epoch'])
        checkpoint[RECORD] = record
        pending = pending_gradients(runner.optim_wrapper, unwrap(runner.model))
        if pending:
            checkpoint['gradients'] = [pending, *self._waiting[1:]]

    # ---- what a guard may ask for

    def hold(self, runner: Runner, most: int | None = None) -> str | None:
        """Make the current stage an epoch longer; its schedule stands still for that epoch.

        Args:
            runner: The runner.
            most: Epochs by which a stage may be longer than planned. Default: its own length.

        Returns:
            What was done in words, None if the stage is as long as it may be.
        """
        progress, stage = self._progress, self._progress.current(self._plan)
        if progress.held >= (stage.epochs if most is None else most):
            return None
        progress.held += 1
        self._set_length(runner, runner.epoch)
        return f"stage '{stage.name}' lasts {stage.epochs + progress.held} epochs, {progress.held} more than planned"

    def lower_rates(self, runner: Runner, factor: float) -> float:
        """Lower all rates for the rest of the run.

        Args:
            runner: The runner.
            factor: On what they are now.

        Returns:
            The factor on the plan's rates from now on.
        """
        self._progress.damping *= factor
        for scheduler in self._schedulers(runner):
            scheduler.damping = self._progress.damping
        return self._progress.damping

    def take_weights_as_start(self, runner: Runner) -> None:
        """Prove frozen tensors against what they are now: earlier weights were put back."""
        self._progress.digests = digests(runner.model) if self.verify else {}
        self._average = FrozenAverage.of(runner, self.frozen)

    @property
    def current_plan(self) -> Plan:
        """The plan of the run."""
        return self._plan

    @property
    def current_progress(self) -> Progress:
        """Where the run is in it."""
        return self._progress

    # ---- the parts of an edge

    def _pass_edge(self, runner: Runner) -> None:
        """From the current stage to the next."""
        plan, progress = self._plan, self._progress
        self._prove(runner)
        stage = progress.current(plan)
        if stage.restore_best:
            restore_best(runner, progress)
        progress.advance(runner.epoch, runner.iter, self._entry(runner, runner.epoch))
        runner.optim_wrapper.zero_grad()
        self._apply(runner)
        if stage.restore_best or progress.current(plan).restart_ema:
            restart_ema(runner)
        self._set_length(runner, runner.epoch)

    def _entry(self, runner: Runner, epoch: int) -> dict[str, Any]:
        """What is remembered of the current stage after an epoch of the run."""
        progress, stage = self._progress, self._progress.current(self._plan)
        return history_entry(stage, unwrap(runner.model), self.frozen, epoch - progress.first_epoch, progress.best,
                             progress.best_epoch)

    def _apply(self, runner: Runner) -> None:
        """Freeze what the current stage says, once a stage."""
        progress = self._progress
        if progress.stage == self._applied:
            return
        self._applied = progress.stage
        stage = progress.current(self._plan)
        planned = resolve(stage, runner.model)
        self.frozen = freeze(runner.model, stage, self._built)
        self._log_stage(runner, stage)
        own = frozen_by_itself(self.frozen, planned)
        if own:
            runner.logger.warning(f'{len(own)} parameters stay frozen by the model itself (frozen_stages or the like), '
                                  f'though the plan trains them: {", ".join(own[:3])}, ...')

    def _prove(self, runner: Runner) -> None:
        """Compare the model with the stage's start."""
        progress = self._progress
        if self.verify and progress.digests:
            prove(runner, progress.current(self._plan).name, self.frozen, progress.digests)

    def _check_wrapper(self, runner: Runner) -> None:
        """Refuse a distributed wrapper that waits for the gradients of frozen parameters."""
        freezes = any(resolve(stage, runner.model).parameters for stage in self._plan.stages)
        if freezes and getattr(runner.model, 'find_unused_parameters', True) is False:
            raise UserError("frozen parameters have no gradient, and DDP would wait for it ('Expected to have finished "
                            "reduction'); set find_unused_parameters=True in the config")

    def _make_exact(self, runner: Runner) -> None:
        """Before a checkpoint or validation: one set of statistics, averages of frozen weights without rounding."""
        share_statistics(runner)
        if self._average is not None:
            self._average.put_back()

    # ---- small things

    @property
    def _plan(self) -> Plan:
        assert self.plan is not None
        return self.plan

    @property
    def _progress(self) -> Progress:
        assert self.progress is not None
        return self.progress

    def _steps(self, runner: Runner, stage: int) -> int:
        """Iterations an epoch."""
        loop = runner.train_loop
        return loop.steps(stage) if hasattr(loop, 'steps') else len(runner.train_dataloader)

    def _batches_done(self, runner: Runner) -> int:
        """Batches of the current epoch that were trained on."""
        progress = self._progress
        return progress.batches_done(runner.epoch, runner.iter, self._steps(runner, progress.stage))

    def _fit_steps(self, runner: Runner) -> None:
        """Come to terms with another number of iterations an epoch than when the checkpoint was made.

        Raises:
            UserError: The checkpoint is of the middle of an epoch.
        """
        progress = self._progress
        steps, before = self._steps(runner, progress.stage), progress.steps
        if not before or before == steps:
            return
        done = progress.batches_done(runner.epoch, runner.iter, before)
        if 0 < done < before:
            raise UserError(f'the checkpoint was made after {done} of {before} iterations of an epoch, and an epoch '
                            f'has {steps} now: resume with the batch size and number of processes it was made with, or '
                            'from a checkpoint of an epoch (--resume PATH)')
        progress.first_iter = runner.iter - (runner.epoch - progress.first_epoch + (done == before)) * steps
        runner.logger.warning(f'an epoch had {before} iterations and has {steps} now: rates follow the epochs, but '
                              'this is not the run it would have been')

    def _is_between_epochs(self, runner: Runner) -> bool:
        """Whether no batch of the current epoch was trained on."""
        return self._batches_done(runner) <= 0

    def _set_length(self, runner: Runner, epoch: int) -> None:
        """Tell the loop how long the run is, as far as is known."""
        if not hasattr(runner.train_loop, 'set_length'):
            return
        plan, progress = self._plan, self._progress
        last = progress.last_epoch(plan, epoch)
        end = min(last, runner.train_loop.cap or last)
        steps = [self._steps(runner, index) for index in range(len(plan.stages))]
        runner.train_loop.set_length(end, progress.iterations(plan, last, end, steps))

    def _schedulers(self, runner: Runner) -> list[StagedLR]:
        schedulers = runner.param_schedulers or []
        return [each for each in schedulers if isinstance(each, StagedLR)] if isinstance(schedulers, list) else []

    def _log_rates(self, runner: Runner) -> None:
        """One scalar a group, where there are several: its rate, 0 if nothing of it trains."""
        for scheduler in self._schedulers(runner):
            groups = [entry for entry in zip(runner.optim_wrapper.param_groups, scheduler.trains) if 'name' in entry[0]]
            for group, trains in groups if len(groups) > 1 else ():
                runner.message_hub.update_scalar(f"train/{group['name']}_lr", group['lr'] if trains else 0.0)

    def _log_stage(self, runner: Runner, stage: Stage) -> None:
        model = unwrap(runner.model)
        trained = sum(each.numel() for name, each in model.named_parameters() if name not in self.frozen.parameters)
        probs = {name: prob for name, prob in stage.step_probs().items() if prob or stage.clean or name in stage.probs}
        held = f'freeze level {stage.freeze_level}' if stage.freeze_level is not None else (
            f'train {list(stage.train)}' if stage.train is not None else f'freeze {list(stage.freeze or ())}')
        runner.logger.info(
            f"stage {self._progress.stage + 1}/{len(self._plan.stages)} '{stage.name}' from epoch "
            f'{self._progress.first_epoch + 1} for {stage.epochs}: {held}, '
            f'training {trained:,} of {sum(each.numel() for each in model.parameters()):,} parameters, '
            f'{len(self.frozen.norms)} normalisation layers held, rate {stage.lr:g}, '
            f'augmentation {probs or "as in the pipeline"}')
