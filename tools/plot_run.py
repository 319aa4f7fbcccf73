#!/usr/bin/env python
"""What `mgdet plot_run` is, see mgdet_plugin/cli/results/plot_run.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('plot_run')
