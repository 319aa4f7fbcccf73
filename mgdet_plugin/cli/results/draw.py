"""Draw a model's detections on the first images of a config's test set."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path


def draw_command(arguments: Sequence[str]) -> int:
    """Draw and say how many detections there are."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG')
    parser.add_argument('checkpoint', metavar='CKPT')
    parser.add_argument('out', metavar='OUT.png')
    parser.add_argument('--count', type=int, default=6, metavar='N', help='images to draw (default: 6)')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S', help='lowest score drawn (default: 0.3)')
    parser.add_argument('--enlarge', type=int, default=2, metavar='N', help='factor on the images (default: 2)')
    args = parser.parse_args(arguments)
    config = str(config_path(args.config))
    check_weights_path(args.checkpoint, config)
    from mgdet_plugin.deploy.draw import draw_detections
    count = draw_detections(config, args.checkpoint, args.out, args.count, args.score_thr, args.enlarge)
    print(f'{count} detections drawn in {args.out}')
    return 0
