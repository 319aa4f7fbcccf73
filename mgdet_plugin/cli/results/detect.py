"""Find objects in pictures, folders, videos, cameras and streams.

Ctrl-C ends a camera or a stream, and anything else with what was found until then written.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.deploy.media.detecting import SCORE_THR, Wish, detect_media
from mgdet_plugin.deploy.thresholds import scores_of


def detect_command(arguments: Sequence[str]) -> int:
    """Detect and say what was found; 1 where a source could not be read to its end, 130 where a person stopped it."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('source', nargs='+', metavar='SOURCE', help='a picture, a folder (any depth), a glob, a video, '
                        'a camera (0, /dev/video0), or the address of a stream or a picture; or several')
    parser.add_argument('--weights', required=True, metavar='W',
                        help='a checkpoint, an export (.onnx, .xml) or a Keras file')
    parser.add_argument('--config', metavar='CFG', help='of the model (default: the one stored in the checkpoint)')
    parser.add_argument('--out', metavar='DIR', help='a new folder to write to (default: work_dirs/detect, numbered)')
    parser.add_argument('--score-thr', default=str(SCORE_THR), metavar='S',
                        help=f'lowest score: 0.5, or person=0.6,dog=0.4, or 0.5,person=0.6 (default: {SCORE_THR})')
    parser.add_argument('--txt', action='store_true', help="write YOLO's labels, too")
    parser.add_argument('--crops', action='store_true', help='write each object as a picture, too')
    parser.add_argument('--no-draw', action='store_true', help='write no pictures and videos with boxes on them')
    parser.add_argument('--show', action='store_true', help='show them in a window; q ends it')
    parser.add_argument('--slice', type=int, nargs='?', const=0, metavar='PX', help='look at large pictures in slices '
                        "of this side, too (default: the input's size): for small objects")
    parser.add_argument('--track', action='store_true', help='number the objects of a video from frame to frame')
    parser.add_argument('--every', type=int, default=1, metavar='N', help='look at one of N frames of a video')
    parser.add_argument('--seconds', type=float, metavar='S', help='leave a video, camera or stream after S seconds')
    parser.add_argument('--batch', type=int, default=1, metavar='N', help='pictures at once (default: 1)')
    parser.add_argument('--device', metavar='D', help='cpu or cuda:N (default: the GPU where there is one)')
    parser.add_argument('--fast', action='store_true', help='faster on some processors, boxes not quite the same')
    parser.add_argument('--threads', type=int, metavar='N', help='threads to compute with')
    args = parser.parse_args(arguments)
    wish = Wish(args.out, not args.no_draw, args.txt, args.crops, args.show, args.batch,
                None if args.slice is None else (args.slice, args.slice), args.track, args.every, args.seconds)
    found = detect_media(args.source, args.weights, args.config, scores_of(args.score_thr), wish, args.device,
                         args.fast, args.threads)
    for line in found.failures:
        print(f'warning: {line}', file=sys.stderr)
    print(('stopped; ' if found.is_stopped else '') + found.line())
    return 130 if found.is_stopped and not found.is_live else int(bool(found.failures))
