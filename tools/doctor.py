#!/usr/bin/env python
"""What `mgdet doctor` is, see mgdet_plugin/cli/prepare/doctor.py."""
from mgdet_plugin.cli import run

if __name__ == '__main__':
    run('doctor')
