#!/usr/bin/env python
"""Draw a training run from its work folder: losses, rates, metrics and weights, and a page with all of them."""
from __future__ import annotations

import argparse
from pathlib import Path

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.runs.run_page import write_report


def main() -> None:
    """Write the report and print the paths of its files."""
    parser = Parser(description=__doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='folder of a finished or running run')
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: WORK_DIR/report)')
    args: argparse.Namespace = parser.parse_args()
    for path in write_report(args.work_dir, Path(args.out) if args.out else None):
        print(path)


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
