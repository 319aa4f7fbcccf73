"""Turn Keras weights (.h5, .weights.h5, .keras) or Darknet's darknet53.conv.74 into a checkpoint."""
from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.report import summary, tensor_table


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('src', metavar='SRC', help='weights of the model or of Darknet53')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    parser.add_argument('--config', help='config of the model (default: configs/mgdet_model5_stage1.py)')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='what to import (default: model); a model file serves for both')
    parser.add_argument('--classes', metavar='NAMES_OR_COUNT',
                        help='the classes to import for: a file of names (one a line), a COCO annotation .json, a '
                             'config .py, a registered dataset (VOCDataset) or a number; rows of known classes are '
                             'kept, the others drawn anew')
    parser.add_argument('--source-classes', metavar='NAMES',
                        help="names of the file's classes, given likewise (default: COCO's if it has 80)")
    parser.add_argument('--report', metavar='R.json', help='write what was done, tensor by tensor')
    parser.add_argument('--list-tensors', action='store_true',
                        help='print source, destination and statistics of every tensor')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='K=V', help='config keys to set')
    args: argparse.Namespace = parser.parse_args()
    return args


def main() -> None:
    """Import and print what was done."""
    args = parse_args()
    report = import_keras(args.src, args.out, config=args.config, part=args.part, classes=args.classes,
                          source_classes=args.source_classes, report=args.report, cfg_options=args.cfg_options)
    print(summary(report) + ('\n' + tensor_table(report) if args.list_tensors else ''))


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
