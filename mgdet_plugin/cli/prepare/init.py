"""Make a config from a folder of pictures and annotations of any format, or from the TensorFlow project's YAML."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgdet_plugin.cli.parser import FORMATS, Parser
from mgdet_plugin.common.errors import UserError


def init_command(arguments: Sequence[str]) -> int:
    """Make it, say what was found and chosen, print its plan and the command that trains it."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('data', metavar='DATA', type=Path, nargs='?', help='folder of pictures and annotations, or an '
                        'annotation file: COCO, VOC, YOLO, lines "path x1,y1,x2,y2,class ...", or a .csv of boxes')
    parser.add_argument('--from-yaml', type=Path, metavar='YAML', help='training, evaluation or inference file of the '
                        'TensorFlow project: its settings, and its data and weights where none are given')
    parser.add_argument('--weights', type=Path, metavar='W', help='model5.h5, darknet53.h5 or a checkpoint .pth to '
                        'start from (default: none, the small model from nothing); weights/digits_source.h5 of a '
                        'checkout is one of the small model to try it with')
    parser.add_argument('--old', type=Path, metavar='D', help='pictures like those the weights were trained on: the '
                        'run keeps what they knew')
    parser.add_argument('--out', type=Path, metavar='MY.py', help="config to write (default: the data's name, here); "
                        'MY_data beside it holds annotations and weights')
    parser.add_argument('--format', choices=FORMATS, help='of the annotations (default: the one that is found)')
    parser.add_argument('--classes', type=Path, metavar='NAMES', help='file of class names, one a line, where '
                        'annotations number them')
    parser.add_argument('--images', type=Path, metavar='D', help='folder of the pictures, where they are not found')
    parser.add_argument('--source-classes', metavar='NAMES', help="names of the weights' classes, as import_keras "
                        'takes them')
    args = parser.parse_args(arguments)
    if args.data is None and args.from_yaml is None:
        raise UserError('no data; give a folder of pictures and annotations, an annotation file or --from-yaml')
    return _from_yaml(args) if args.from_yaml else _from_data(args)


def _from_data(args: Namespace) -> int:
    from mgdet_plugin.prepare.project import Wish, make_project
    return _plan(make_project(Wish(**_wish(args)), print))


def _from_yaml(args: Namespace) -> int:
    from mgdet_plugin.prepare.project import make_project
    from mgdet_plugin.prepare.tensorflow.account import account_lines
    from mgdet_plugin.prepare.tensorflow.convert import convert
    from mgdet_plugin.prepare.tensorflow.inference import inference_lines, measuring_lines
    converted = convert(args.from_yaml, **_wish(args))
    config = None if converted.wish is None else make_project(converted.wish, print, converted.recipe)
    for name, entries in converted.accounts.items():
        print(f'\n{name}, {len(entries)} keys')
        print('\n'.join(account_lines(entries)))
    print()
    if config is None:
        print('\n'.join(inference_lines(converted.recipe)))
        return 0
    if converted.recipe.measures:
        print('\n'.join(measuring_lines(config)))
        return 0
    return _plan(config)


def _wish(args: Namespace) -> dict[str, Any]:
    return dict(data=args.data, weights=args.weights, old=args.old, out=args.out, form=args.format,
                classes=args.classes, images=args.images, source_classes=args.source_classes)


def _plan(config: Path) -> int:
    """Print the plan of a config that was made, and what to do with it."""
    from mgdet_plugin.cli.training.plan import plan_command
    from mgdet_plugin.prepare.project import next_lines
    print(f'config: {config}\n')
    code = plan_command([str(config)])
    print('\n' + '\n'.join(next_lines(config)))
    return code
