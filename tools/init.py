#!/usr/bin/env python
"""What `mgdet init` is, see mgdet_plugin/cli/prepare/init.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('init')
