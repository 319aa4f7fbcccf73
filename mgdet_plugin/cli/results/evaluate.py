"""Write a page about what weights get right and wrong on a labelled set: curves, classes, kinds of error, pictures."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.runs.analysis.evaluate import SPLITS, evaluate, evaluation_text


def evaluate_command(arguments: Sequence[str]) -> int:
    """Evaluate, print the main figures and the page's path."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='config of the model, any of mmdet, with a labelled set')
    parser.add_argument('checkpoint', metavar='CKPT', help='the weights')
    parser.add_argument('--before', metavar='START.pth', help='weights to show beside, as those it was fine-tuned from')
    parser.add_argument('--old', metavar='CFG', help="config whose set is the old domain's, with the same classes")
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: evaluation beside CKPT)')
    parser.add_argument('--split', choices=SPLITS, default=SPLITS[0], help='which sets of the configs (default: test)')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    evaluation, paths = evaluate(args.config, args.checkpoint, args.before, args.old, args.out, args.split,
                                 cfg_options(args.cfg_options))
    print(evaluation_text(evaluation))
    print(paths[-1])
    return 0
