#!/usr/bin/env python
"""What `mgdet first_loss` is, see mgdet_plugin/cli/training/first_loss.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('first_loss')
