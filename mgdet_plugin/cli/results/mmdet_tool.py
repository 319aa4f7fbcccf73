"""Run any other tool that mmdet ships, with the plugin loaded.

CFG among its arguments may be the name of one of our configs. What goes wrong in the tool is told in one line;
MGDET_TRACEBACK=1 in the environment shows where.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.resources import mmdet_script


def mmdet_tool_command(arguments: Sequence[str]) -> int:
    """Run the tool named first on the other arguments."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('name', metavar='NAME', help='its place in mmdet, for example analysis_tools/confusion_matrix')
    parser.add_argument('rest', metavar='...', nargs=argparse.REMAINDER, help="the tool's own arguments")
    args = parser.parse_args(arguments)
    mmdet_script(args.name)
    from mgdet_plugin.runs.mmdet_tools import run_tool
    run_tool(args.name.removesuffix('.py'), args.rest)
    return 0
