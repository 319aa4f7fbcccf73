"""Evaluate the weights before and after fine-tuning on the test sets of the new and the old domain."""
from __future__ import annotations

import json
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser


def compare_command(arguments: Sequence[str]) -> int:
    """Print the metrics of both checkpoints, one line a test set."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='config of the fine-tuned model; its test set is the new domain')
    parser.add_argument('before', metavar='BEFORE', help='checkpoint the run started from')
    parser.add_argument('after', metavar='AFTER', help='checkpoint it ended with')
    parser.add_argument('--old', metavar='CFG', help="config whose test set is the old domain's, with the same classes")
    parser.add_argument('--json', action='store_true', help='print all metrics as JSON')
    args = parser.parse_args(arguments)
    configs = {'new domain': args.config, **({'old domain': args.old} if args.old else {})}
    from mgdet_plugin.runs.evaluation import before_after, rows_text
    rows = before_after(configs, args.before, args.after)
    print(json.dumps(rows, indent=1) if args.json else rows_text(rows))
    return 0
