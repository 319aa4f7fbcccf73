#!/usr/bin/env python
"""What `mgdet look` is, see mgdet_plugin/cli/prepare/look.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('look')
