#!/usr/bin/env python
"""What `mgdet export_keras` is, see mgdet_plugin/cli/weights/export_keras.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('export_keras')
