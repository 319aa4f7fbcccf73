"""Watches a run: signs, baselines, actions, record. Importing it registers the hook."""
from mgdet_plugin.guard.drift_guard_hook import DriftGuardHook

__all__ = ['DriftGuardHook']
