"""Print the plan of a config without training: stages, what trains at which rate, and the rules it breaks."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.resources import config_path


def plan_command(arguments: Sequence[str]) -> int:
    """Print the plan and the rules it breaks; 2 if one of them is an error."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_argument('--json', action='store_true', help='print the plan as JSON')
    parser.add_argument('--processes', type=int, default=1, metavar='N', help='processes it will run in (scaled rates)')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    path = config_path(args.config)
    from mmengine.config import Config

    from mgdet_plugin.engine.config_check import check_parts, checked
    from mgdet_plugin.plan.report import plan_report, plan_text, report_without_stages
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(cfg_options(args.cfg_options))
    if cfg.get('stages'):
        check_parts(cfg, 'model', 'train_dataloader', 'train_cfg', 'optim_wrapper')
    with checked(cfg):
        report, findings = plan_report(cfg, args.processes) if cfg.get('stages') else (report_without_stages(cfg), [])
    rules = [dict(rule=each.rule, error=each.is_error, text=each.text) for each in findings]
    print(json.dumps(dict(report, rules=rules), indent=1) if args.json else plan_text(report))
    for each in findings:
        print(('error: ' if each.is_error else 'warning: ') + each.line(), file=sys.stderr)
    return 2 if any(each.is_error for each in findings) else 0
