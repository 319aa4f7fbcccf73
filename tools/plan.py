#!/usr/bin/env python
"""What `mgdet plan` is, see mgdet_plugin/cli/training/plan.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('plan')
