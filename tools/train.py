#!/usr/bin/env python
"""What `mgdet train` is, see mgdet_plugin/cli/training/train.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('train')
