"""Compare a checkpoint with the file it was imported from, tensor by tensor; see tools/README.md."""
from __future__ import annotations

import argparse

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.weights.verify import verify_import, verify_summary


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('src', metavar='SRC', help='Keras or Darknet weights the checkpoint was imported from')
    parser.add_argument('ckpt', metavar='CKPT', help='checkpoint that tools/import_keras.py wrote')
    parser.add_argument('--json', metavar='F', help='write the result as JSON')
    args: argparse.Namespace = parser.parse_args()
    return args


def main() -> None:
    """Verify, print what was found, and exit with 1 where something differs."""
    args = parse_args()
    report = verify_import(args.src, args.ckpt, report=args.json)
    print(verify_summary(report))
    raise SystemExit(0 if report['agrees'] else 1)


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
