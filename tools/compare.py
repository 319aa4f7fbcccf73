#!/usr/bin/env python
"""What `mgdet compare` is, see mgdet_plugin/cli/results/compare.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('compare')
