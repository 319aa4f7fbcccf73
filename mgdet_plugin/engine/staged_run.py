"""A run's plan and where the run is in it: what its loop, hooks, scheduler and guard share."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.dist import broadcast_object_list
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.console import SAID
from mgdet_plugin.engine.optim.moving_average import ema_hooks
from mgdet_plugin.engine.optim.staged_lr_scheduler import StagedLR
from mgdet_plugin.plan.freezing import Frozen, frozen_of, trained_parts, unwrap
from mgdet_plugin.plan.plan import Plan, Stage
from mgdet_plugin.plan.progress import Entry, Progress
from mgdet_plugin.plan.report import span_in_words
from mgdet_plugin.plan.rules import check_rules, rate_limit, refuse_broken

if TYPE_CHECKING:
    from mgdet_plugin.engine.loops.staged_train_loop import StagedTrainLoop


class StagedRun:
    """A plan being carried out by a runner's loop. ``StagedTrainLoop`` makes it; ``StagedUnfreezeHook`` begins it.

    Attributes:
        plan: The plan; on resume with the start its first run had.
        progress: Where the run is.
        rolled_back: Whether a guard has put earlier weights back after the validation just done: its figures are not
            those of the weights there are now, so they make no best checkpoint and no improvement.
        kept: Share of the old domain's mean AP that the validation just done has left, as a guard has measured it, and
            what share must be; None without ``keep``.
    """

    def __init__(self, runner: Runner, loop: StagedTrainLoop, plan: Plan) -> None:
        self.runner, self.loop, self.plan = runner, loop, plan
        self.progress = Progress()
        self.rolled_back = False
        self.kept: tuple[float, float] | None = None

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.progress.current(self.plan)

    def begin(self, record: Mapping[str, Any], history: list[Entry]) -> None:
        """Find where the run is, hold its plan against the guide and give sampler and scheduler the plan.

        ``record`` is that of the checkpoint to resume from, empty for a new run; ``history`` are the stages that loaded
        weights went through before.

        Raises:
            UserError: The plan breaks a rule, or does not fit the checkpoint or the run.
        """
        runner = self.runner
        if record:
            self.progress = Progress.from_plain(record, self.plan)
            self._fit_steps()
            if self.progress.start and not (runner.cfg.get('plan') or {}).get('start'):
                self.plan = self.plan.with_start(self.progress.start)
        else:
            self.progress = Progress.at(self.plan, runner.epoch, self.loop.steps(0))
            self.progress.history, self.progress.start = history, self.plan.start
            self.progress.fitted = dict(runner.cfg.get('fitted') or {})
            self.progress.run = f'{runner.timestamp}-{os.urandom(4).hex()}'
        for line in refuse_broken(check_rules(self.plan, runner.cfg, unwrap(runner.model),
                                              self.progress.inherited())):
            runner.logger.warning(line)
        self._check_wiring()
        self.set_length()
        if self.loop.batch_sampler is not None:
            seeds = [runner.seed]
            broadcast_object_list(seeds, 0)  # with diff_rank_seed each process has its own
            self.loop.batch_sampler.set_seed(seeds[0])  # on resume the checkpoint's
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        scaled = bool((runner.auto_scale_lr or {}).get('enable'))
        for scheduler in self.schedulers():
            scheduler.follow(self.plan, rate_limit(self.plan), accumulated if scaled else 1,
                             runner.cfg.train_dataloader.batch_size if scaled else None)

    def _check_wiring(self) -> None:
        """Refuse a run in which something the plan says could not happen."""
        self._check_wrapper()
        if not self.schedulers():
            raise UserError("the rates of the stages would not be used: set param_scheduler=[dict(type='StagedLR')]")
        if any(stage.restart_ema for stage in self.plan.stages) and not ema_hooks(self.runner):
            raise UserError("a stage has restart_ema, and there is no moving average: add dict(type='EMAHook') to "
                            'custom_hooks, or take restart_ema out')

    def _check_wrapper(self) -> None:
        """Refuse a distributed wrapper that waits for the gradients of frozen parameters."""
        model = self.runner.model
        freezes = any(frozen_of(stage, model).parameters for stage in self.plan.stages)
        if freezes and getattr(model, 'find_unused_parameters', True) is False:
            raise UserError("frozen parameters have no gradient, and DDP would wait for it ('Expected to have finished "
                            "reduction'); set find_unused_parameters=True in the config")

    def _fit_steps(self) -> None:
        """Come to terms with another number of iterations an epoch than when the checkpoint was made."""
        runner, progress = self.runner, self.progress
        steps, before = self.loop.steps(progress.stage), progress.steps
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

    def enter_epoch(self) -> None:
        """Tell sampler, schedulers and gradient accumulation which epoch, or what is left of one, comes next."""
        runner, progress = self.runner, self.progress
        steps = self.loop.steps(progress.stage)
        self.loop.skip = skip = max(0, self._batches_done())
        if self.loop.batch_sampler is not None:
            self.loop.batch_sampler.set_progress(runner.epoch, progress.stage, skip)
        if not skip:  # within an epoch the schedule goes on
            progress.stood = min(progress.held, runner.epoch - progress.first_epoch)
        for scheduler in self.schedulers():
            scheduler.enter(progress.stage, progress.first_iter + progress.stood * steps, steps, runner.iter,
                            progress.rate_factor)
        progress.steps = steps
        wrapper = runner.optim_wrapper  # mmengine lets a group of accumulated iterations reach over an edge
        wrapper._inner_count, wrapper._max_counts = skip, steps
        wrapper._remainder_counts = steps % wrapper._accumulative_counts

    def set_length(self) -> None:
        """Tell the loop how long the run is, as far as is known."""
        plan, progress = self.plan, self.progress
        last = progress.last_epoch(plan, self.runner.epoch)
        end = min(last, self.loop.cap or last)
        steps = [self.loop.steps(index) for index in range(len(plan.stages))]
        self.loop._max_epochs, self.loop._max_iters = end, progress.iterations(plan, last, end, steps)

    def take_validation(self, metrics: Mapping[str, float]) -> bool:
        """Decide about the stage's end in the first process, for all; returns whether it is the stage's best so far."""
        progress, before = self.progress, self.progress.fallen
        improved = progress.after_validation(self.plan, self.runner.epoch, metrics, self.rolled_back)
        decided: list[Any] = [progress, improved]
        broadcast_object_list(decided, 0)
        self.progress = progress = decided[0]
        until = self.plan.until(progress.stage)
        if progress.ended and until is not None:
            self.runner.logger.info(f"stage '{self.stage.name}' ends by {until.metric}: {progress.misses} validations "
                                    f'without improvement on {progress.best} of epoch {progress.best_epoch}',
                                    extra=SAID)
        plateau = self.stage.plateau
        if plateau is not None and progress.fallen < before:
            self.runner.logger.info(f"stage '{self.stage.name}': {plateau.metric} has not improved on "
                                    f'{progress.level} for {plateau.patience} validations: rates are '
                                    f"{progress.rate_factor:.3g} times the plan's from here on", extra=SAID)
        self.set_length()
        return bool(decided[1])

    def is_edge(self) -> bool:
        """Whether the current stage is over and another one follows."""
        return (self.progress.is_over(self.plan, self.runner.epoch)
                and self.progress.stage + 1 < len(self.plan.stages))

    def is_validation_missing(self) -> bool:
        """Whether the run was interrupted between an epoch and its validation."""
        return self.progress.validated < self.runner.epoch and self._batches_done() <= 0

    def entry(self, frozen: Frozen, epoch: int) -> Entry:
        """What is remembered of the current stage, which froze ``frozen``, after an epoch of the run."""
        stage, progress = self.stage, self.progress
        return Entry(name=stage.name, freeze_level=stage.freeze_level, lr=stage.lr, best=progress.best,
                     best_epoch=progress.best_epoch, epochs=epoch - progress.first_epoch,
                     trained_parts=trained_parts(self.runner.model, frozen))

    def extend(self, end: int) -> None:
        """Let the run, whose last stage may be over, go on until ``end`` epochs of it are done, unless it does already.

        The schedule of the stage goes on, too: a cosine that has come to its end stays there.
        """
        progress, plan, epoch, stage = self.progress, self.plan, self.runner.epoch, self.stage
        if progress.stage + 1 < len(plan.stages) or end <= progress.last_epoch(plan, epoch):
            return
        progress.extend(plan, end)
        self.set_length()
        done = epoch - progress.first_epoch - progress.stood
        first, last = (stage.lr * progress.rate_factor * stage.factor(each) for each in (done, done + end - epoch))
        how = {'cosine': 'where its cosine ended' if first == last else f'to {last:g} along its cosine',
               'constant': 'constant', 'plateau': 'lower where its plateau says so'}[stage.schedule]
        self.runner.logger.info(f"stage '{stage.name}' goes on, {span_in_words(epoch + 1, end)}, at a rate of "
                                f'{first:g}, {how}', extra=SAID)

    def hold(self, most: int | None = None) -> str | None:
        """Make the current stage an epoch longer; its schedule stands still for that epoch.

        Returns:
            What was done in words, None if the stage is ``most`` epochs (its own length) longer than planned already.
        """
        progress, stage = self.progress, self.stage
        if progress.held >= (stage.epochs if most is None else most):
            return None
        progress.held += 1
        self.set_length()
        return f"stage '{stage.name}' lasts {stage.epochs + progress.held} epochs, {progress.held} more than planned"

    def lower_rates(self, factor: float) -> float:
        """Lower all rates for the rest of the run by a factor; returns the factor on the plan's rates from now on."""
        self.progress.damping *= factor
        for scheduler in self.schedulers():
            scheduler.damping = self.progress.rate_factor
        return self.progress.damping

    def schedulers(self) -> Sequence[StagedLR]:
        """The schedulers that follow the plan."""
        schedulers = self.runner.param_schedulers or []
        return [each for each in schedulers if isinstance(each, StagedLR)] if isinstance(schedulers, list) else []

    def _batches_done(self) -> int:
        """Batches of the current epoch that were trained on."""
        progress = self.progress
        return progress.batches_done(self.runner.epoch, self.runner.iter, self.loop.steps(progress.stage))


def staged_run(runner: Runner) -> StagedRun | None:
    """The plan that a runner carries out, None where it trains without one or not at all."""
    run = getattr(runner._train_loop, 'staged', None)  # the public property would build the loop
    return run if isinstance(run, StagedRun) else None
