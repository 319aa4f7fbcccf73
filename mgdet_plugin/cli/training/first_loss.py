"""The validation loss a run would start from, beside the same weights with prediction rows drawn at random."""
from __future__ import annotations

from collections.abc import Sequence

from mgdet_plugin.cli.parser import Parser, cfg_options


def first_loss_command(arguments: Sequence[str]) -> int:
    """Measure and print a table, one loss term a row."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG')
    parser.add_argument('checkpoint', metavar='CKPT')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    from mgdet_plugin.runs.evaluation import first_losses
    losses = first_losses(args.config, args.checkpoint, cfg_options(args.cfg_options))
    print(f'{"loss per image":<16}' + ''.join(f'{name:>28}' for name in losses))
    for term in next(iter(losses.values())):
        print(f'{term:<16}' + ''.join(f'{terms[term]:>28.3f}' for terms in losses.values()))
    return 0
