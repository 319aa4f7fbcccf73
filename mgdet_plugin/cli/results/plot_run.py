"""Draw a training run: losses, rates, metrics and distances as PNG files and one page."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser


def plot_run_command(arguments: Sequence[str]) -> int:
    """Write the report and print the paths of its files."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='folder of a finished or running run')
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: WORK_DIR/report)')
    args = parser.parse_args(arguments)
    from mgdet_plugin.runs.run_page import write_report
    for path in write_report(args.work_dir, Path(args.out) if args.out else None):
        print(path)
    return 0
