"""Draw the samples a stage, or a run without stages, trains on, with truth, cells, anchors and decoded targets."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.errors import require
from mgdet_plugin.common.files import check_destination
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path


def look_command(arguments: Sequence[str]) -> int:
    """Draw them and say in a line what they are; 1 where a target does not decode to the truth."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_argument('--stage', metavar='N', help='number of the stage from 1, or its name (default: the first)')
    parser.add_argument('--epoch', type=int, metavar='E', help="of the run, from 1 (default: the stage's first)")
    parser.add_argument('--seed', type=int, metavar='S', help="of the run (default: the config's, else the "
                        "checkpoint's, else 0)")
    parser.add_argument('--samples', type=int, default=12, metavar='N', help='how many to look at; at most 24 are '
                        'drawn, all are counted (default: 12)')
    parser.add_argument('--checkpoint', metavar='CKPT', help='draw what these weights find beside each sample')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S', help='lowest score drawn (default: 0.3)')
    parser.add_argument('--out', metavar='F.png', help='(default: work_dirs/CFG/look/stage<N>_epoch<E>.png, without '
                        'stages epoch<E>.png)')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    path = config_path(args.config)
    if args.checkpoint:
        check_weights_path(args.checkpoint, args.config)
    if args.out:
        require(Path(args.out).suffix.lower() == '.png', 'the file to draw must end in .png', args.out)
        check_destination(Path(args.out), path)
    from mgdet_plugin.prepare.batches.look import look_at_stage
    from mgdet_plugin.prepare.batches.view import View
    view = View(args.stage, args.epoch, args.seed, args.samples, args.checkpoint, args.score_thr)
    seen = look_at_stage(args.config, view, args.out, cfg_options(args.cfg_options),
                         lambda line: print(line, file=sys.stderr))
    print(f'{seen.line}; drawn in {seen.path}')
    return 1 if seen.tally.off else 0
