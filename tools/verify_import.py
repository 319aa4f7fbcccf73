#!/usr/bin/env python
"""What `mgdet verify_import` is, see mgdet_plugin/cli/weights/verify_import.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('verify_import')
