#!/usr/bin/env python
"""What `mgdet test` is, see mgdet_plugin/cli/training/test.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('test')
