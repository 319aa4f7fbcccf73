#!/usr/bin/env python
"""What `mgdet blend_weights` is, see mgdet_plugin/cli/results/blend_weights.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('blend_weights')
