"""Blend fine-tuned with pretrained weights, measure each share on the new and the old domain, and pick one."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.files import check_destination
from mgdet_plugin.keep.blending import ALPHAS
from mgdet_plugin.runs.blends import IMAGES, PICKS, STATISTICS, blend_weights


def blend_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('pretrained', metavar='PRETRAINED', help="weights before it, such as a run's start.pth")
    parser.add_argument('finetuned', metavar='FINETUNED', help='fine-tuned weights')
    parser.add_argument('--alphas', type=float, nargs='+', default=ALPHAS, metavar='A',
                        help='shares of the fine-tuned weights (default: 0 0.25 0.5 0.75 1)')
    parser.add_argument('--config', metavar='CFG', help='default: the only *.py beside FINETUNED')
    parser.add_argument('--out', metavar='BLENDED.pth', help='write the picked weights')
    parser.add_argument('--plot', metavar='PLOT.png', help='draw AP against alpha, and new against old domain')
    parser.add_argument('--json', metavar='F', help='write all that was measured')
    parser.add_argument('--images', type=int, default=IMAGES, metavar='N',
                        help='training images to estimate running statistics from (default: 64)')
    parser.add_argument('--pick', choices=PICKS, default='mean',
                        help='highest mean of both domains, or highest new among those that keep the old one')
    parser.add_argument('--keep', type=float, default=0.95, metavar='S',
                        help="for --pick new: share of the pretrained weights' old-domain metric (default: 0.95)")
    parser.add_argument('--statistics', choices=STATISTICS,
                        help='running statistics between the ends: from training images, from those and images of the '
                        'old domain, or blended like weights (default: both where there is an old domain, else new)')
    parser.add_argument('--device', metavar='D', help='torch device (default: a GPU if there is one)')
    parser.add_cfg_options()
    return parser.parse_args(arguments)


def blend_weights_command(arguments: Sequence[str]) -> int:
    """Measure, print a table and write what is asked for."""
    args = blend_options(arguments)
    for path in filter(None, (args.out, args.plot, args.json)):
        check_destination(Path(path), Path(args.pretrained), Path(args.finetuned))
    blend = blend_weights(args.pretrained, args.finetuned, args.alphas, args.config, args.images, args.pick, args.keep,
                          args.statistics, args.device, cfg_options(args.cfg_options),
                          lambda line: print(line, file=sys.stderr))
    from mgdet_plugin.runs.blend_report import blend_table, write_outputs
    for note in blend.notes:
        print(f'note: {note}')
    print(blend_table(blend))
    write_outputs(blend, args.out, args.plot, args.json)
    return 0
