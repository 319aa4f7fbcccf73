"""Turn a checkpoint into Keras weights: .h5, .weights.h5 or .keras."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser


def export_keras_command(arguments: Sequence[str]) -> int:
    """Export and print what was written."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('ckpt', metavar='CKPT', help='checkpoint of an import or a training run')
    parser.add_argument('out', metavar='OUT', help='file to write; .h5, .weights.h5 or .keras chooses the layout')
    parser.add_argument('--part', choices=('model', 'backbone'), default='model',
                        help='what to export (default: model); a checkpoint of a model serves for both')
    parser.add_argument('--dtype', choices=('float32', 'float16'), default='float32',
                        help='how numbers are stored (default: float32); float16 halves an .h5 or .weights.h5')
    args = parser.parse_args(arguments)
    from mgdet_plugin.weights.exporter import export_keras, export_summary
    print(export_summary(export_keras(args.ckpt, args.out, part=args.part, dtype=args.dtype)))
    return 0
