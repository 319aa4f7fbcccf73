#!/usr/bin/env python
"""What `mgdet complete_labels` is, see mgdet_plugin/cli/training/complete_labels.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('complete_labels')
