#!/usr/bin/env python
"""What `mgdet detect` is, see mgdet_plugin/cli/results/detect.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('detect')
