#!/usr/bin/env python
"""What `mgdet evaluate` is, see mgdet_plugin/cli/results/evaluate.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('evaluate')
