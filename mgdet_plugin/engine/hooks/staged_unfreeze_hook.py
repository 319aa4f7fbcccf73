"""The hook that freezes and thaws as a plan says."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, get_rank, is_distributed
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mgdet_plugin.common.checkpoint_content import checks
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.records import need, typed
from mgdet_plugin.engine.hooks.random_state_hook import saves_now
from mgdet_plugin.engine.optim.moving_average import frozen_averages, restart_ema
from mgdet_plugin.engine.optim.staged_optim_wrapper_constructor import fit_groups
from mgdet_plugin.engine.staged_run import StagedRun, staged_run
from mgdet_plugin.engine.transitions import (
    STAGE_BEST,
    log_stage,
    prove,
    restore_best,
    save_as,
    save_last,
    share_statistics,
)
from mgdet_plugin.plan.freezing import Frozen, digests, freeze, hold, unwrap
from mgdet_plugin.plan.progress import RECORD, Entry, Progress, stages_before

_GRADIENTS = 'gradients'  # in a checkpoint


@HOOKS.register_module()
class StagedUnfreezeHook(Hook):
    """Freeze, thaw and change stages as the plan says, and log every transition in one line.

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
        self.frozen = Frozen(frozenset(), {})
        self._run: StagedRun | None = None
        self._record: dict[str, Any] = {}
        self._history: list[Entry] = []
        self._gradients = PendingGradients()
        self._applied = -1
        self._built: frozenset[str] = frozenset()
        self._averages: list[tuple[Tensor, Tensor]] = []

    @property
    def run(self) -> StagedRun:
        """The run, once it has begun."""
        assert self._run is not None
        return self._run

    @property
    def progress(self) -> Progress | None:
        """Where the run is in its plan; None before it has begun."""
        return self._run.progress if self._run is not None else None

    def before_run(self, runner: Runner) -> None:
        """Look at what the detector was built with frozen."""
        self._applied = -1
        self._built = frozenset(name for name, each in unwrap(runner.model).named_parameters()
                                if not each.requires_grad)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the record of a checkpoint to resume from, or what loaded weights went through before."""
        if runner._resume:
            record = checkpoint.get(RECORD)
            self._record = dict(record) if isinstance(record, Mapping) else {}
            self._gradients.load(checkpoint)
            fit_groups(runner, checkpoint)
        else:
            self._history = stages_before(checkpoint)

    def before_train(self, runner: Runner) -> None:
        """Find where the run is and freeze accordingly."""
        self._run = staged_run(runner)
        if self._run is None:
            raise UserError(f'StagedUnfreezeHook needs the loop that follows a plan, and this run has a '
                            f"{type(runner.train_loop).__name__}; set train_cfg=dict(type='StagedTrainLoop') and "
                            'stages, or take staged_unfreeze out of default_hooks')
        self._run.begin(self._record, self._history)
        self._apply(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass an edge if the stage is over; set rates, sampler and counters of the epoch."""
        run = self.run
        while run.is_edge():
            self._pass_edge(runner)
        self._apply(runner)
        run.enter_epoch()
        self._gradients.restore(runner.model)
        if not run.progress.digests:
            self.take_weights_as_start(runner)
        self._averages = frozen_averages(runner, self.frozen)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Hold the frozen statistics: the loop calls ``model.train()`` after ``before_train_epoch``."""
        if any(norm.training for norm in self.frozen.norms.values()):
            hold(self.frozen.norms.values())
        self._log_rates(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Make the processes' statistics one before an iteration's checkpoint."""
        if saves_now(runner):
            self._make_exact(runner)
            self._gradients.gather(runner.optim_wrapper, runner.model)

    def after_train_epoch(self, runner: Runner) -> None:
        """Make the processes' statistics one: mmengine's DDP does not share them."""
        self._make_exact(runner)
        self.run.rolled_back = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Decide about the stage's end, once for all processes, and keep its best checkpoint."""
        if self._run is None:  # a validation without training
            return
        if self._run.take_validation(metrics or {}) and self._run.stage.restore_best:
            save_as(runner, STAGE_BEST.format(self._run.progress.stage + 1))

    def after_train(self, runner: Runner) -> None:
        """Prove the last stage, too, and leave a checkpoint that says the run is over."""
        self._prove(runner)
        if self.run.progress.ended:  # decided after CheckpointHook asked whether this is the last epoch
            save_last(runner, again=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the record, what a later run must know of this stage, and gradients that wait for their step."""
        if self._run is None:
            return
        entry = self._run.entry(self.frozen, checkpoint['meta']['epoch'])
        checkpoint[RECORD] = dict(self._run.progress.to_plain(), entry=entry)
        self._gradients.save(runner.optim_wrapper, runner.model, checkpoint)

    def take_weights_as_start(self, runner: Runner) -> None:
        """Prove frozen tensors against what they are now: the stage begins, or earlier weights were put back."""
        self.run.progress.digests = digests(runner.model) if self.verify else {}
        self._averages = frozen_averages(runner, self.frozen)

    def _pass_edge(self, runner: Runner) -> None:
        """From the current stage to the next."""
        run, restores = self.run, self.run.stage.restore_best
        self._prove(runner)
        if restores:
            restore_best(runner, run.progress)
        run.progress.advance(runner.epoch, runner.iter, run.entry(self.frozen, runner.epoch))
        runner.optim_wrapper.zero_grad()
        self._apply(runner)
        if restores or run.stage.restart_ema:
            restart_ema(runner)
        run.set_length()

    def _apply(self, runner: Runner) -> None:
        """Freeze what the current stage says, once a stage."""
        run = self.run
        if run.progress.stage != self._applied:
            self._applied = run.progress.stage
            self.frozen = freeze(runner.model, run.stage, self._built)
            log_stage(runner, run, self.frozen)

    def _prove(self, runner: Runner) -> None:
        """Compare the model with the stage's start."""
        if self.verify and self.run.progress.digests:
            prove(runner, self.run.stage.name, self.frozen, self.run.progress.digests)

    def _make_exact(self, runner: Runner) -> None:
        """Before a checkpoint or validation: one set of statistics, averages of frozen weights without rounding."""
        share_statistics(runner)
        for average, tensor in self._averages:
            average.copy_(tensor)

    def _log_rates(self, runner: Runner) -> None:
        """One scalar a group, where there are several: its rate, 0 if nothing of it trains."""
        for scheduler in self.run.schedulers():
            groups = [entry for entry in zip(runner.optim_wrapper.param_groups, scheduler.trains) if 'name' in entry[0]]
            for group, trains in groups if len(groups) > 1 else ():
                runner.message_hub.update_scalar(f"train/{group['name']}_lr", group['lr'] if trains else 0.0)


@checks(_GRADIENTS)
def _check_gradients(gradients: Any, place: str) -> None:
    for each in typed(list[dict[str, Any]], gradients, place):
        for name, value in each.items():
            need(isinstance(value, Tensor), f'{place}.{name}', value, 'a tensor')


class PendingGradients:
    """Gradients that wait for their step, of every process: in a checkpoint and out of it."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Tensor]] = []
        self._gathered: list[dict[str, Tensor]] = []

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Keep a checkpoint's until training begins."""
        self._loaded = list(checkpoint.get(_GRADIENTS) or ())

    def restore(self, model: nn.Module) -> None:
        """Put this process's back, once."""
        own = self._loaded[get_rank()] if get_rank() < len(self._loaded) else {}
        for name, parameter in unwrap(model).named_parameters():
            if name in own and parameter.requires_grad and own[name].shape == parameter.shape:
                parameter.grad = own[name].to(parameter)
        self._loaded = []

    def gather(self, optim_wrapper: OptimWrapper, model: nn.Module) -> None:
        """Take note of all processes' before an iteration's checkpoint, which the first one saves."""
        waiting = self._waiting(optim_wrapper, model)
        self._gathered = all_gather_object(waiting) if waiting and is_distributed() else []

    def save(self, optim_wrapper: OptimWrapper, model: nn.Module, checkpoint: dict[str, Any]) -> None:
        """Add them to a checkpoint, this process's as they are now."""
        waiting = self._waiting(optim_wrapper, model)
        if waiting:
            checkpoint[_GRADIENTS] = [waiting, *self._gathered[1:]]

    @staticmethod
    def _waiting(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
        """This process's; empty right after a step."""
        if optim_wrapper.should_update():
            return {}
        return {name: parameter.grad.detach().cpu().clone() for name, parameter in unwrap(model).named_parameters()
                if parameter.grad is not None}
