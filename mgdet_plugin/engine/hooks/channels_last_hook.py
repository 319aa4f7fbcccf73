"""Convolutions with the channels innermost in memory."""
from __future__ import annotations

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the model's maps and kernels with the channels innermost: the same numbers up to rounding, sooner.

    Measured on one CPU core (docs/benchmarks.md). Under DDP, whose buckets have their layout by then, nothing is done.
    """

    def before_train(self, runner: Runner) -> None:
        """Lay out the kernels; maps follow them."""
        if is_model_wrapper(runner.model):
            runner.logger.info('ChannelsLastHook: left as it is under distributed training')
            return
        runner.model.to(memory_format=torch.channels_last)
