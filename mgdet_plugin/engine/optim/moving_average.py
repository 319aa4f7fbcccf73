"""Moving averages of weights across stages."""
from __future__ import annotations

import torch
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.plan.freezing import Frozen, unwrap


def frozen_averages(runner: Runner, frozen: Frozen) -> list[tuple[Tensor, Tensor]]:
    """Average and tensor of all that is frozen in a run and has an average that equals it at this moment.

    Averaging equal numbers is not exact everywhere: mmdet's ``ExpMomentumEMA`` rounds, and after thousands of updates
    the average of a frozen weight, which is what checkpoints give out, has drifted from it, unless it is put back.
    """
    model = unwrap(runner.model)
    own, names = model.state_dict(), frozen.tensors(model)
    averages = [hook.ema_model.module.state_dict() for hook in ema_hooks(runner)]
    return [(each[name], own[name]) for each in averages for name in names if torch.equal(each[name], own[name])]


def ema_hooks(runner: Runner) -> list[EMAHook]:
    """The hooks that average weights."""
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


def restart_ema(runner: Runner) -> None:
    """Make the moving average of weights equal to the weights, and let its warmup begin anew."""
    for hook in ema_hooks(runner):
        hook.ema_model.module.load_state_dict(unwrap(runner.model).state_dict())
        hook.ema_model.steps.zero_()
        runner.logger.info('moving average of weights started anew')
