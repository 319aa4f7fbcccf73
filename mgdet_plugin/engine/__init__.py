"""What runs a fine-tuning plan, and the pure functions behind it. Importing it registers all."""
from mgdet_plugin.engine.hooks.channels_last_hook import ChannelsLastHook
from mgdet_plugin.engine.hooks.class_weights_hook import ClassWeightsHook
from mgdet_plugin.engine.hooks.console_hook import ConsoleHook
from mgdet_plugin.engine.hooks.l2_sp_hook import L2SPHook
from mgdet_plugin.engine.hooks.random_state_hook import RandomStateHook
from mgdet_plugin.engine.hooks.results_hook import ResultsHook
from mgdet_plugin.engine.hooks.staged_unfreeze_hook import StagedUnfreezeHook
from mgdet_plugin.engine.hooks.whole_checkpoint_hook import WholeCheckpointHook
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.loops.staged_train_loop import StagedTrainLoop
from mgdet_plugin.engine.metrics.faster_coco_metric import FasterCocoMetric
from mgdet_plugin.engine.optim.staged_lr_scheduler import StagedLR
from mgdet_plugin.engine.optim.staged_optim_wrapper_constructor import StagedOptimWrapperConstructor
from mgdet_plugin.engine.tensorboard_backend import OptionalTensorboardVisBackend

__all__ = [
    'ChannelsLastHook', 'ClassWeightsHook', 'ConsoleHook', 'FasterCocoMetric', 'L2SPHook', 'LossValLoop',
    'OptionalTensorboardVisBackend', 'RandomStateHook', 'ResultsHook', 'StagedLR', 'StagedOptimWrapperConstructor',
    'StagedTrainLoop', 'StagedUnfreezeHook', 'WholeCheckpointHook',
]
