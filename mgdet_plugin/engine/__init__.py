"""What runs a fine-tuning plan, and the pure functions behind it. Importing it registers all."""
from mgdet_plugin.engine.best_checkpoint_hook import BestCheckpointHook
from mgdet_plugin.engine.channels_last_hook import ChannelsLastHook
from mgdet_plugin.engine.class_weights_hook import ClassWeightsHook
from mgdet_plugin.engine.drift_guard_hook import DriftGuardHook
from mgdet_plugin.engine.l2_sp_hook import L2SPHook
from mgdet_plugin.engine.loss_val_loop import LossValLoop
from mgdet_plugin.engine.optim_constructor import StagedOptimWrapperConstructor
from mgdet_plugin.engine.random_state_hook import RandomStateHook
from mgdet_plugin.engine.staged_lr_scheduler import StagedLR
from mgdet_plugin.engine.staged_train_loop import StagedTrainLoop
from mgdet_plugin.engine.staged_unfreeze_hook import StagedUnfreezeHook

__all__ = [
    'BestCheckpointHook', 'ChannelsLastHook', 'ClassWeightsHook', 'DriftGuardHook', 'L2SPHook', 'LossValLoop',
    'RandomStateHook', 'StagedLR', 'StagedOptimWrapperConstructor', 'StagedTrainLoop', 'StagedUnfreezeHook',
]
