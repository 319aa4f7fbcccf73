"""Run any other tool that mmdet ships, with the plugin loaded."""
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
    from mgdet_plugin.engine.preflight import run_mmdet_script
    run_mmdet_script(args.name, args.rest)
    return 0
