"""Rates by stage."""
from __future__ import annotations

from typing import Any

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.rates import PlannedRates


@PARAM_SCHEDULERS.register_module()
class StagedLR(_ParamScheduler):
    """The rate of every group as a pure function of the plan and the iteration, and the factor of a guard's lowering.

    The cosine ends at a ratio of each group's own rate, so multipliers survive to its end. The run gives it the plan
    and says where a stage begins; the groups must come from ``StagedOptimWrapperConstructor``.

    With ``auto_scale_lr`` every rate is multiplied by images a step (accumulation included) over
    ``base_batch_size``, then held to the plan's limit.

    Args:
        optimizer: The optimizer wrapper.
        by_epoch: Must be False: rates change every iteration.
        end: Not used: mmengine gives every scheduler the length of the run, ours comes from the plan.
    """

    def __init__(self, optimizer: OptimWrapper, by_epoch: bool = False, end: int | None = None) -> None:
        if by_epoch:
            raise UserError('StagedLR changes rates every iteration; by_epoch must be False')
        groups = optimizer.param_groups  # the last may be mmengine's own, the base rate of the log
        if 'planned_lr' not in groups[0]:
            raise UserError('StagedLR needs groups by part: set '
                            "optim_wrapper.constructor='StagedOptimWrapperConstructor'")
        self.batch_ratio = groups[0]['lr'] / groups[0]['planned_lr']  # what auto_scale_lr has multiplied by
        self.planned: PlannedRates | None = None
        self.trains = [True] * len(groups)
        self.stage = 0
        self.first_iter = 0
        self.steps = 1
        self.damping = 1.0
        super().__init__(optimizer, 'lr', by_epoch=False)

    def follow(self, plan: Plan, limit: float | None, accumulated: int = 1, batch_size: int | None = None) -> None:
        """Take the plan.

        Args:
            plan: The plan.
            limit: The highest rate a group may have, or None.
            accumulated: Iterations a step, where rates are scaled by the batch: mmengine leaves them out.
            batch_size: The dataloader's, where rates are scaled: a stage may have another.
        """
        scale = self.batch_ratio * accumulated
        self.planned = PlannedRates(plan, self.optimizer.param_groups, limit, scale, batch_size)

    def enter(self, stage: int, first_iter: int, steps: int, iteration: int, damping: float = 1.0) -> None:
        """Say where the run is; sets the rates of the next iteration.

        Args:
            stage: Index of the stage.
            first_iter: Iteration at which it began, later by those for which its schedule stood still.
            steps: Iterations an epoch in this stage.
            iteration: The next iteration.
            damping: Factor on all rates.
        """
        self.damping = damping
        self.stage, self.first_iter, self.steps = stage, first_iter, max(1, steps)
        self.last_step = iteration
        # what is frozen changes at edges only; mmengine's own group always counts
        self.trains = ['name' not in group or any(parameter.requires_grad for parameter in group['params'])
                       for group in self.optimizer.param_groups]
        self.apply()

    def step(self) -> None:
        """Go on to the next iteration."""
        self.last_step += 1
        self.apply()

    def apply(self) -> None:
        """Set the rates of the next iteration; before the plan is there they are the optimizer's."""
        if self.planned is not None:
            for group, rate in zip(self.optimizer.param_groups, self.rates(self.last_step)):
                group['lr'] = rate
        self._last_value = [group['lr'] for group in self.optimizer.param_groups]

    def rates(self, iteration: int) -> list[float]:
        """The rate of each group at an iteration of the current stage."""
        assert self.planned is not None
        return self.planned.at(self.stage, self.trains, max(0.0, (iteration - self.first_iter) / self.steps),
                               self.damping)

    def state_dict(self) -> dict[str, Any]:
        """The next iteration; everything else follows from the plan."""
        return dict(last_step=self.last_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the next iteration of a checkpoint; the state of other schedulers is not needed."""
        self.last_step = int(state_dict.get('last_step', 0))
