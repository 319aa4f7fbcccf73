"""The optimizer's wrapper over groups that may ever have a rate of their own."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Adam

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.freezing import unwrap
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.rates import RateRules, base_rate, parameter_groups

_ADAM = {'step', 'exp_avg', 'exp_avg_sq'}  # what it keeps of a parameter that it has moved


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class StagedOptimWrapperConstructor:
    """Build the optimizer over *all* parameters, see :mod:`mgdet_plugin.plan.rates`.

    Args:
        optim_wrapper_cfg: Config of the wrapper with its ``optimizer``. The optimizer's ``lr`` comes from the plan.
        paramwise_cfg: See :class:`RateRules`.
        plan: The run's plan; ``StagedTrainLoop`` hands it over.

    Raises:
        UserError: An option is unknown, a factor makes no sense, a pattern matches nothing, the rate is given twice.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None,
                 plan: Plan | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        if 'optimizer' not in self.wrapper_cfg:
            raise UserError(f'optim_wrapper needs an optimizer, got {dict(optim_wrapper_cfg)}')
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        self.rules, self.plan = RateRules.build(paramwise_cfg), plan

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer of a model, wrapped or not."""
        rate = base_rate(self.plan, self.optimizer_cfg.get('lr'))
        groups = parameter_groups(unwrap(model), self.rules, self.plan.stages if self.plan else (), rate,
                                  self.optimizer_cfg.get('weight_decay', 0) or 0)
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'lr': rate, 'params': groups})
        self.wrapper_cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args=dict(optimizer=optimizer))


def fit_groups(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Hold the optimizer of a checkpoint to resume from against the run's.

    What a group is told beside its rate (weight decay, momentum) is the config's, as rates are the plan's: torch takes
    a checkpoint's in silence, whatever was changed in the config since or was never in it.

    Raises:
        UserError: Its groups are others, lack numbers of their parameters or hold them in another shape.
    """
    optimizer = checkpoint.get('optimizer') or {}
    saved = optimizer.get('param_groups')
    own = getattr(runner.optim_wrapper, 'optimizer', None)
    groups, needed = getattr(own, 'param_groups', None), _ADAM if isinstance(own, Adam) else set()
    if saved is None or groups is None:
        return
    if [len(group['params']) for group in saved] != [len(group['params']) for group in groups]:
        raise UserError(f"the checkpoint's optimizer has {len(saved)} groups of parameters and the plan makes "
                        f'{len(groups)}, or divides them otherwise: lr_mult or paramwise_cfg was changed; resume with '
                        'what it was made with, or start a new run from its weights (load_from)')
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    moving = {'params', 'lr', 'initial_lr', *(getattr(each, 'param_name', '') for each in schedulers)}
    changed: dict[str, str] = {}
    for theirs, ours in zip(saved, groups):
        for index, parameter in zip(theirs['params'], ours['params']):
            state = optimizer.get('state', {}).get(index) or {}
            lacking = sorted(needed - {name for name, value in state.items() if value is not None}) if state else []
            if lacking:
                raise UserError(f"the checkpoint's optimizer has no {', '.join(lacking)} for one of its parameters: it "
                                'is damaged; give another checkpoint')
            for name, value in state.items():
                if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                    raise UserError(f"the checkpoint's optimizer has {name} of the shape {tuple(value.shape)} for a "
                                    f'parameter of {tuple(parameter.shape)}: it is damaged; give another checkpoint')
        for name in {*theirs} & {*ours} - moving:
            if _listed(theirs[name]) != _listed(ours[name]):
                changed[name] = f'{name} {theirs[name]} in the checkpoint, {ours[name]} in the config'
                theirs[name] = ours[name]
        theirs.update({name: value for name, value in ours.items() if name not in theirs})
    if changed:
        runner.logger.warning(f"the config's settings of the optimizer are taken: {'; '.join(changed.values())}")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
