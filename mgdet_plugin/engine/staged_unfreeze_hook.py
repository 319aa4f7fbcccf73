"""Freezing by stage."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mgdet_plugin.engine.freezing import freeze, hold, unwrap
from mgdet_plugin.engine.plan import build_plan, stage_at


@HOOKS.register_module()
class StagedUnfreezeHook(Hook):
    """Freeze what the stage of the current epoch says, truly, and log every transition.

    The state follows from the plan and the epoch alone, so a resumed run is right from its first iteration.

    Args:
        stages: The plan, a list of stages (see :class:`~mgdet_plugin.engine.plan.Stage`).

    Raises:
        UserError: If the plan is wrong.
    """
    priority = 'NORMAL'

    def __init__(self, stages: Sequence[Mapping]) -> None:
        self.plan = build_plan(stages)
        self._stage = -1
        self._norms: list[nn.Module] = []

    def before_train(self, runner: Runner) -> None:
        """Freeze once the optimizer holds every parameter and before the first epoch."""
        self._stage = -1
        self._enter(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Enter the epoch's stage."""
        self._enter(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Hold the frozen statistics: the loop calls ``model.train()`` after ``before_train_epoch``."""
        if any(norm.training for norm in self._norms):
            hold(self._norms)

    def _enter(self, runner: Runner) -> None:
        index, stage = stage_at(self.plan, runner.epoch)
        if index == self._stage:
            return
        self._stage = index
        self._norms = freeze(runner.model, stage.freeze_level)
        parameters = list(unwrap(runner.model).parameters())
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        runner.logger.info(f"stage {index + 1}/{len(self.plan)} '{stage.name}': freeze level {stage.freeze_level}, "
                           f'training {trained:,} of {sum(p.numel() for p in parameters):,} parameters, '
                           f'{len(self._norms)} normalisation layers held')
