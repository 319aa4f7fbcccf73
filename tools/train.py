#!/usr/bin/env python
"""Train a detector: mmdet's own train script with the plugin loaded, after a check of datasets and weights.

    python tools/train.py CFG [--work-dir D] [--resume] [--amp] [--demo] [--launcher L] [--cfg-options k=v ...]

Options are mmdet's. --demo trains the small model on embedded data in place of the config's. --resume goes on from the
newest checkpoint of the work folder that is whole, and starts from load_from where there is none.
"""
import sys

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.engine.demo import use_demo
from mgdet_plugin.engine.preflight import prepare_train, run_mmdet_script

if __name__ == '__main__':
    with user_errors_to_exit():
        arguments = use_demo(sys.argv[1:], train=True)
        run_mmdet_script('train', prepare_train(arguments))
