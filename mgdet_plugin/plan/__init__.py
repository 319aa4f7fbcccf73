"""Stages as data: plan, rules, freezing, rates and the position in a run."""
