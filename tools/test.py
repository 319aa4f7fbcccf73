#!/usr/bin/env python
"""Test a detector: mmdet's own test script with the plugin loaded, after a check of dataset and checkpoint.

    python tools/test.py CFG CKPT [--work-dir D] [--out F.pkl] [--show-dir D] [--tta] [--demo] [--cfg-options k=v ...]

Options are mmdet's. --demo tests the small model on embedded data in place of the config's.
"""
import sys

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.engine.demo import use_demo
from mgdet_plugin.engine.preflight import prepare_test, run_mmdet_script

if __name__ == '__main__':
    with user_errors_to_exit():
        arguments = use_demo(sys.argv[1:], train=False)
        prepare_test(arguments)
        run_mmdet_script('test', arguments)
