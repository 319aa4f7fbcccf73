"""Turn Keras weights (.h5, .weights.h5, .keras) into a checkpoint; see tools/README.md."""
from __future__ import annotations

import argparse

from mmengine.config import DictAction

from mgdet_plugin.cli import Parser
from mgdet_plugin.errors import user_errors_to_exit
from mgdet_plugin.keras_io.importer import import_keras
from mgdet_plugin.keras_io.report import summary


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('src', metavar='SRC', help='Keras weights of the model or of Darknet53')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    parser.add_argument('--config', help='config of the model (default: configs/mgdet_model5_stage1.py)')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='what to import (default: model); a model file serves for both')
    parser.add_argument('--classes', metavar='NAMES_OR_COUNT',
                        help='file of new class names, one a line, or their number; draws their rows anew')
    parser.add_argument('--report', metavar='R.json', help='write what was done, tensor by tensor')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='K=V', help='config keys to set')
    args: argparse.Namespace = parser.parse_args()
    return args


def main() -> None:
    """Import and print what was done."""
    args = parse_args()
    print(summary(import_keras(args.src, args.out, config=args.config, part=args.part, classes=args.classes,
                               report=args.report, cfg_options=args.cfg_options)))


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
