#!/usr/bin/env python
"""Run a tool mmdet ships, with the plugin loaded.

    python tools/mmdet_tool.py NAME [ARGUMENTS ...]

NAME is its place under mmdet's tools, for example analysis_tools/confusion_matrix; ARGUMENTS are the tool's own.
"""
import sys

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.engine.preflight import run_mmdet_script

if __name__ == '__main__':
    with user_errors_to_exit():
        if len(sys.argv) < 2:
            raise UserError('name a tool, for example analysis_tools/confusion_matrix')
        run_mmdet_script(sys.argv[1], sys.argv[2:])
