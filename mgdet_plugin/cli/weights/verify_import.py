"""Compare a checkpoint with the file it was imported from, tensor by tensor."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser


def verify_import_command(arguments: Sequence[str]) -> int:
    """Verify and print what was found; 1 where something differs."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('src', metavar='SRC', help='Keras or Darknet weights the checkpoint was imported from')
    parser.add_argument('ckpt', metavar='CKPT', help='checkpoint that tools/import_keras.py wrote')
    parser.add_argument('--json', metavar='F', help='write the result as JSON')
    args = parser.parse_args(arguments)
    from mgdet_plugin.weights.verify import verify_import, verify_summary
    report = verify_import(args.src, args.ckpt, report=args.json)
    print(verify_summary(report))
    return 0 if report['agrees'] else 1
