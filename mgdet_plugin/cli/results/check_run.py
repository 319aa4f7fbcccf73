"""Judge a training run from its work folder: was the model fine-tuned, or untrained?"""
from __future__ import annotations

import json
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser


def check_run_command(arguments: Sequence[str]) -> int:
    """Print the checks and the verdict; 1 if one fails, else 0."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='folder of a finished or running run')
    parser.add_argument('--json', action='store_true', help='print the checks as JSON')
    args = parser.parse_args(arguments)
    from mgdet_plugin.runs.run import read_run
    from mgdet_plugin.runs.run_checks import FAIL, check_run, checks_json, checks_text, verdict
    record = read_run(args.work_dir)
    checks = check_run(record)
    print(json.dumps(checks_json(record, checks), indent=1, allow_nan=False) if args.json else
          checks_text(record, checks))
    return 1 if verdict(checks) == FAIL else 0
