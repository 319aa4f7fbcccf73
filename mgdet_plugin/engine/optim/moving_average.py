"""Moving averages of weights across stages."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.plan.freezing import Frozen, unwrap


class FrozenAverage:
    """Averages of frozen tensors that equal the tensors, kept so.

    Averaging equal numbers is not exact everywhere: mmdet's ``ExpMomentumEMA`` rounds, and after thousands of updates
    the average of a frozen weight, which is what checkpoints give out, has drifted from it.

    Args:
        pairs: The average and the frozen tensor, equal now.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs

    @classmethod
    def of(cls, runner: Runner, frozen: Frozen) -> FrozenAverage:
        """The frozen tensors of a run whose average equals them at this moment; those that differ go on averaging."""
        model = unwrap(runner.model)
        own = model.state_dict(keep_vars=False)
        names = frozen.tensors(model)
        pairs = []
        for hook in ema_hooks(runner):
            averages = hook.ema_model.module.state_dict()
            pairs += [(averages[name], own[name]) for name in names if torch.equal(averages[name], own[name])]
        return cls(pairs)

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo the rounding."""
        for average, tensor in self.pairs:
            average.copy_(tensor)


def share_averaged_statistics(runner: Runner, learning: Mapping[str, Tensor]) -> None:
    """Give the averaged models the statistics that the processes agreed on; an averaged model is what is saved.

    Args:
        runner: The runner.
        learning: Name -> statistic of the model, the same in all processes by now.
    """
    for hook in ema_hooks(runner):
        averages = hook.ema_model.module.state_dict()
        for name, statistic in learning.items():
            if hook.ema_model.update_buffers:  # averages of their own, of what each process saw
                all_reduce(averages[name], 'mean')
            else:
                averages[name].copy_(statistic)


def ema_hooks(runner: Runner) -> list[EMAHook]:
    """The hooks that average weights."""
    return [hook for hook in runner.hooks if isinstance(hook, EMAHook)]


def restart_ema(runner: Runner) -> None:
    """Make the moving average of weights equal to the weights, and let its warmup begin anew."""
    for hook in ema_hooks(runner):
        hook.ema_model.module.load_state_dict(unwrap(runner.model).state_dict())
        hook.ema_model.steps.zero_()
        runner.logger.info('moving average of weights started anew')
