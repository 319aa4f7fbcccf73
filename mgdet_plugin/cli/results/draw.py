"""Draw a model's detections on the first images of a config's test set."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.deploy.draw import draw_detections


def draw_command(arguments: Sequence[str]) -> int:
    """Draw and say how many detections there are."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_argument('checkpoint', metavar='CKPT', help='weights that an import or a training run wrote')
    parser.add_argument('out', metavar='OUT.png')
    parser.add_argument('--count', type=int, default=6, metavar='N', help='images to draw (default: 6)')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='S', help='lowest score drawn (default: 0.3)')
    parser.add_argument('--enlarge', type=int, metavar='N', help="factor on the images (default: by each one's size)")
    parser.add_argument('--truth', action='store_true', help='draw the annotated boxes too, dashed')
    args = parser.parse_args(arguments)
    count = draw_detections(args.config, args.checkpoint, args.out, args.count, args.score_thr, args.enlarge,
                            args.truth)
    print(f'{count} detections drawn in {args.out}')
    return 0
