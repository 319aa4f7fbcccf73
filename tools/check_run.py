#!/usr/bin/env python
"""What `mgdet check_run` is, see mgdet_plugin/cli/results/check_run.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('check_run')
