#!/usr/bin/env python
"""What `mgdet mmdet_tool` is, see mgdet_plugin/cli/results/mmdet_tool.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('mmdet_tool')
