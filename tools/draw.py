#!/usr/bin/env python
"""What `mgdet draw` is, see mgdet_plugin/cli/results/draw.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('draw')
