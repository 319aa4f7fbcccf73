#!/usr/bin/env python
"""What `mgdet anchors` is, see mgdet_plugin/cli/prepare/anchors.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('anchors')
