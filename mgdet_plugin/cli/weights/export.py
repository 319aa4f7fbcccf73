"""Write weights as ONNX, OpenVINO or a faster torch checkpoint, and measure the file against them."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.deploy.export.export_model import PRECISIONS, SUFFIXES, export_model


def export_command(arguments: Sequence[str]) -> int:
    """Export; the table of what was measured goes to standard error, as it is printed where a bound is broken, too."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('weights', metavar='CKPT', help='weights of an import or a training run, or a Keras file')
    parser.add_argument('out', metavar='OUT', help='file to write: .onnx, .xml (OpenVINO, .bin beside it) or .pth')
    parser.add_argument('--config', metavar='CFG', help='config of the model (default: the one in the checkpoint)')
    parser.add_argument('--format', choices=tuple(SUFFIXES), help='default: by the suffix of OUT')
    parser.add_argument('--precision', choices=sorted({each for some in PRECISIONS.values() for each in some}),
                        default='fp32', help='default: fp32; fp16 and int8 are for openvino, bf16 for torch, too')
    parser.add_argument('--nms', action='store_true', help='suppress duplicates in the graph (onnx, openvino)')
    parser.add_argument('--max-drop', type=float, default=0.01, metavar='AP',
                        help='the most AP the file may cost (default: 0.01)')
    parser.add_argument('--pictures', metavar='VAL',
                        help="annotated pictures to measure on, in any format init reads (default: the config's "
                             'validation set)')
    parser.add_argument('--images', metavar='DIR', help='folder of the pictures of VAL, where it is not that of VAL')
    parser.add_argument('--count', type=int, default=200, metavar='N', help='the most pictures (default: 200)')
    args = parser.parse_args(arguments)
    export_model(args.weights, args.out, args.config, args.format, args.precision, args.nms, args.max_drop,
                 args.pictures, args.count, images=args.images)
    print(f'written   {args.out}')
    return 0
