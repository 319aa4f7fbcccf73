"""Optimizer, rates and steps."""
