#!/usr/bin/env python
"""Print a config's plan without training: what each stage trains, its rates and its augmentation."""
from __future__ import annotations

import argparse
import json
import os
import sys

from mmengine.config import Config, DictAction

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.plan.report import plan_report, plan_text


def main() -> int:
    """Print the plan and the rules it breaks; 2 if one of them is an error."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', metavar='CFG')
    parser.add_argument('--json', action='store_true', help='print the plan as JSON')
    parser.add_argument('--processes', type=int, default=1, metavar='N', help='processes it will run in (scaled rates)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='K=V', help='config keys to set')
    args: argparse.Namespace = parser.parse_args()
    if not os.path.isfile(args.config):
        raise UserError(f'the config {args.config} is not there; configs lie in configs/')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(dict(args.cfg_options or {}))
    report, findings = plan_report(cfg, args.processes)
    rules = [dict(rule=each.rule, error=each.is_error, text=each.text) for each in findings]
    print(json.dumps(dict(report, rules=rules), indent=1) if args.json else plan_text(report))
    for each in findings:
        print(('error: ' if each.is_error else 'warning: ') + each.line(), file=sys.stderr)
    return 2 if any(each.is_error for each in findings) else 0


if __name__ == '__main__':
    with user_errors_to_exit():
        sys.exit(main())
