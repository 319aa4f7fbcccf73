#!/usr/bin/env python
"""What `mgdet benchmark` is, see mgdet_plugin/cli/results/benchmark.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('benchmark')
