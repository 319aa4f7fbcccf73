"""Turn Keras weights (.h5, .weights.h5, .keras) or Darknet's darknet53.conv.74 into a checkpoint."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.resources import config_path


def import_keras_command(arguments: Sequence[str]) -> int:
    """Import and print what was done."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('src', metavar='SRC', help='weights of the model or of Darknet53; with --classes or '
                        '--add-classes a checkpoint .pth, too')
    parser.add_argument('out', metavar='OUT.pth', help='checkpoint to write')
    parser.add_argument('--config', help='config of the model (default: configs/mgdet_model5_stage1.py)')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='what to import (default: model); a model file serves for both')
    parser.add_argument('--classes', metavar='NAMES_OR_COUNT',
                        help='the classes to import for: a file of names (one a line), a COCO annotation .json, a '
                             'config .py, a registered dataset (VOCDataset) or a number; rows of known classes are '
                             'kept, the others drawn anew')
    parser.add_argument('--add-classes', metavar='NAMES',
                        help='new classes, given likewise, to add after all of the file, whose rows are kept')
    parser.add_argument('--source-classes', metavar='NAMES',
                        help="names of the file's classes, given likewise (default: those a checkpoint stores, COCO's "
                             'for 80)')
    parser.add_argument('--report', metavar='R.json', help='write what was done, tensor by tensor')
    parser.add_argument('--list-tensors', action='store_true',
                        help='print source, destination and statistics of every tensor')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    config = args.config and config_path(args.config)
    classes, source_classes, add_classes = (
        str(config_path(each)) if each and each.endswith('.py') else each
        for each in (args.classes, args.source_classes, args.add_classes))
    from mgdet_plugin.weights.importer import import_keras
    report = import_keras(args.src, args.out, config=config, part=args.part, classes=classes,
                          source_classes=source_classes, report=args.report,
                          cfg_options=cfg_options(args.cfg_options), add_classes=add_classes)
    from mgdet_plugin.weights.import_report import summary, tensor_table  # takes what the import does
    print(summary(report) + ('\n' + tensor_table(report) if args.list_tensors else ''))
    return 0
