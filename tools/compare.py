#!/usr/bin/env python
"""Evaluate the weights before and after fine-tuning on the test sets of the new and the old domain."""
from __future__ import annotations

import argparse
import json

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.runs.evaluation import before_after, rows_text


def main() -> None:
    """Print the metrics of both checkpoints, one line a test set."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', metavar='CFG', help='config of the fine-tuned model; its test set is the new domain')
    parser.add_argument('before', metavar='BEFORE', help='checkpoint the run started from')
    parser.add_argument('after', metavar='AFTER', help='checkpoint it ended with')
    parser.add_argument('--old', metavar='CFG', help="config whose test set is the old domain's, with the same classes")
    parser.add_argument('--json', action='store_true', help='print all metrics as JSON')
    args: argparse.Namespace = parser.parse_args()
    configs = {'new domain': args.config, **({'old domain': args.old} if args.old else {})}
    rows = before_after(configs, args.before, args.after)
    print(json.dumps(rows, indent=1) if args.json else rows_text(rows))


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
