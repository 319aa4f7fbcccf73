"""The validation loss a run would start from, beside the same weights with prediction rows drawn at random."""
from __future__ import annotations

import argparse

from mmengine.config import DictAction

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.runs.evaluation import first_losses


def main() -> None:
    """Measure and print a table, one loss term a row."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', metavar='CFG')
    parser.add_argument('checkpoint', metavar='CKPT')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='K=V', help='config keys to set')
    args: argparse.Namespace = parser.parse_args()
    losses = first_losses(args.config, args.checkpoint, args.cfg_options)
    print(f'{"loss per image":<16}' + ''.join(f'{name:>28}' for name in losses))
    for term in next(iter(losses.values())):
        print(f'{term:<16}' + ''.join(f'{terms[term]:>28.3f}' for terms in losses.values()))


if __name__ == '__main__':
    with user_errors_to_exit():
        main()
