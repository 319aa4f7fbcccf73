"""Look for anchors that fit the training boxes better, and say what changing them costs the loaded weights."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.files import check_folder
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path


def anchors_command(arguments: Sequence[str]) -> int:
    """Print overlaps before and after, the cost, and the line for the config."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_argument('--metric', choices=('iol', 'iou'), default='iol',
                        help='overlap to go by (default: iol, by which the assigner chooses)')
    parser.add_argument('--generations', type=int, default=1000, metavar='N', help='of the evolution (default: 1000)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='of all that is drawn (default: 0)')
    parser.add_argument('--measure', metavar='CKPT', help='measure the validation losses of these weights with both')
    parser.add_argument('--out', metavar='DIR', help='folder for anchors.png and anchors.json')
    parser.add_argument('--json', action='store_true', help='print anchors.json in place of the lines')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    config_path(args.config)
    if args.measure:
        check_weights_path(args.measure, args.config)
    if args.out:
        check_folder(Path(args.out))
    from mgdet_plugin.prepare.anchors import choose_anchors, write_choice
    choice = choose_anchors(args.config, args.metric, args.generations, args.seed, args.measure,
                            cfg_options(args.cfg_options))
    paths = write_choice(choice, args.out) if args.out else []
    print(json.dumps(choice.as_json(), indent=1) if args.json else '\n'.join([*choice.lines(), *map(str, paths)]))
    return 0
