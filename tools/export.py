#!/usr/bin/env python
"""What `mgdet export` is, see mgdet_plugin/cli/weights/export.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('export')
