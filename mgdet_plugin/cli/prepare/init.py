"""Make a config from a folder of pictures and annotations of any format: nothing to write by hand."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser

_FORMATS = ('coco', 'voc', 'yolo', 'lines', 'csv')


def init_command(arguments: Sequence[str]) -> int:
    """Make it, say what was found and chosen, print its plan and the command that trains it."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('data', metavar='DATA', type=Path, help='folder of pictures and annotations, or an annotation '
                        'file: COCO, Pascal VOC, YOLO, lines "path x1,y1,x2,y2,class ...", or a .csv of boxes')
    parser.add_argument('--weights', type=Path, metavar='W', help='model5.h5, darknet53.h5 or a checkpoint .pth to '
                        'start from (default: none, the small model from nothing)')
    parser.add_argument('--old', type=Path, metavar='D', help='pictures like those the weights were trained on: the '
                        'run keeps what they knew')
    parser.add_argument('--out', type=Path, metavar='MY.py', help="config to write (default: the data's name, here); "
                        'MY_data beside it holds annotations and weights')
    parser.add_argument('--format', choices=_FORMATS, help='of the annotations (default: the one that is found)')
    parser.add_argument('--classes', type=Path, metavar='NAMES', help='file of class names, one a line, where '
                        'annotations number them')
    parser.add_argument('--images', type=Path, metavar='D', help='folder of the pictures, where they are not found')
    parser.add_argument('--source-classes', metavar='NAMES', help="names of the weights' classes, as import_keras "
                        'takes them')
    args = parser.parse_args(arguments)
    from mgdet_plugin.cli.training.plan import plan_command
    from mgdet_plugin.prepare.project import Wish, make_project, next_lines
    config = make_project(Wish(args.data, args.weights, args.old, args.out, args.format, args.classes, args.images,
                               args.source_classes), print)
    print(f'config: {config}\n')
    code = plan_command([str(config)])
    print('\n' + '\n'.join(next_lines(config)))
    return code
