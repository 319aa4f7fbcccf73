"""Hooks that run a fine-tuning plan, and the pure functions behind them."""
from mgdet_plugin.engine.best_checkpoint_hook import BestCheckpointHook
from mgdet_plugin.engine.class_weights_hook import ClassWeightsHook
from mgdet_plugin.engine.staged_unfreeze_hook import StagedUnfreezeHook

__all__ = ['BestCheckpointHook', 'ClassWeightsHook', 'StagedUnfreezeHook']
