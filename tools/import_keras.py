#!/usr/bin/env python
"""What `mgdet import_keras` is, see mgdet_plugin/cli/weights/import_keras.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('import_keras')
