"""Convolutions with the channels innermost in memory."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner

from mgdet_plugin.compat.launch import has_accelerator, has_bfloat16


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keep the model's maps and kernels with the channels innermost: the same numbers up to rounding, sooner.

    Measured on one CPU core (docs/benchmarks.md); in mixed precision on a CPU ``StagedTrainLoop`` registers it, unless
    the config does. Under DDP, whose buckets have their layout by then, nothing is done.
    """

    def before_train(self, runner: Runner) -> None:
        """Lay out the kernels; maps follow them."""
        if is_model_wrapper(runner.model):
            runner.logger.info('ChannelsLastHook: left as it is under distributed training')
            return
        runner.model.to(memory_format=torch.channels_last)
        runner.logger.info('ChannelsLastHook: kernels and maps have their channels innermost in memory')


def lay_out_mixed_precision(runner: Runner) -> None:
    """Register the hook where a run on a CPU is in mixed precision and has none: bfloat16 is made for that layout.

    A person is told where the processor has no units for it.
    """
    wrapper = runner.optim_wrapper
    kind = wrapper.get('type') if isinstance(wrapper, Mapping) else type(wrapper)
    if kind not in ('AmpOptimWrapper', AmpOptimWrapper) or has_accelerator():
        return
    if not has_bfloat16('cpu'):
        runner.logger.warning('mixed precision on a processor without units for bfloat16 (AVX-512 BF16, AMX): a step '
                              'takes several times as long as in single precision; leave --amp out')
    if not any(isinstance(hook, ChannelsLastHook) for hook in runner.hooks):
        runner.register_hook(ChannelsLastHook())
