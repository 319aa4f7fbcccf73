"""Write what weights find of classes that a set does not label beside its labels."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.deploy.label_completion import complete_labels


def complete_labels_command(arguments: Sequence[str]) -> int:
    """Complete and say what was added."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='config of the weights, its path or name')
    parser.add_argument('checkpoint', metavar='CKPT', help='weights that know the classes to look for')
    parser.add_argument('annotations', metavar='ANN.json', help="the set's COCO annotations")
    parser.add_argument('out', metavar='OUT.json', help='annotations to write; ANN.json stays as it is')
    parser.add_argument('--images', metavar='D', help="folder of its pictures (default: the config's train set's)")
    parser.add_argument('--score-thr', type=float, default=0.5, metavar='S',
                        help='score from which a box is an object (default: 0.5)')
    parser.add_argument('--unsure', type=float, default=0.1, metavar='S',
                        help='score from which a box is a region to be ignored (default: 0.1)')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    completed = complete_labels(args.config, args.checkpoint, args.annotations, args.out, args.images, args.score_thr,
                                args.unsure, cfg_options(args.cfg_options))
    print(f'{args.out}: {completed.line()}')
    return 0
