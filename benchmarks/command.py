"""Speed against named peers measured in the same run; a ratio below 1 is faster than the peer.

    python tools/benchmark.py [SUITE ...] [--device D] [--json F]

Suites of learning train many runs side by side, an hour or more, and go on where they were cut off:

    python tools/benchmark.py untraining [--photographs DIR] [--only NAME ...] [--jobs N] [--seeds S ...] [--out DIR]
    python tools/benchmark.py new_classes --bccd DIR [--raccoon DIR] [--only NAME ...] [--jobs N] [--seeds S ...] ...
    python tools/benchmark.py accuracy [--only NAME ...] [--jobs N] [--seeds S ...] [--out DIR]
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser
from mgdet_plugin.common.errors import UserError


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, without importing what is measured."""
    parser = Parser('benchmark', __doc__)
    parser.add_argument('suites', nargs='*', metavar='SUITE',
                        help='any of inference, train_step, suppression, suppression_cells, suppression_classes, '
                             'validation, guarded_step, import, start, keep, deploy, amp_step, stage_step, targets, '
                             'scaling, keep_step, stage1_cache, pipeline (default: these) and of accuracy, '
                             'untraining, new_classes')
    parser.add_argument('--device', default='cpu', help='torch device for speed')
    parser.add_argument('--json', metavar='F', help='file for the figures of speed')
    parser.add_argument('--jobs', type=int, metavar='N',
                        help='learning: runs at once, each on one core (default: number of cores; 1 on a GPU)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], metavar='S', help='learning: default 0 1 2')
    parser.add_argument('--only', nargs='+', default=[], metavar='NAME',
                        help='learning: what to run, such as heads, variants/bccd or keep_50 (default: all)')
    for name, what in (('photographs', 'untraining: folder of photographs that have nothing to do with the old images'),
                       ('bccd', 'new_classes: folder of the blood cells, with annotations/ and images/'),
                       ('raccoon', 'new_classes: folder of the raccoons, with annotations/ in VOC form and images/')):
        parser.add_argument(f'--{name}', type=Path, metavar='DIR', help=what)
    parser.add_argument('--amp', action='store_true',
                        help='learning: train in mixed precision, faster where there are units for it')
    parser.add_argument('--out', default='work_dirs/benchmarks', metavar='DIR',
                        help='learning: folder in which each suite has its own (default: %(default)s)')
    args: argparse.Namespace = parser.parse_args(arguments)
    return args


def default_jobs() -> int:
    """Runs that fit side by side: one a core this process may use, one in all on a GPU."""
    import torch
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def main(arguments: Sequence[str]) -> int:
    """Print a line for each suite of speed, and the report of each of learning."""
    args = parse(arguments)
    from benchmarks.benchmark import LEARNING, ROWS, SUITES, LearningOptions, check_names, run_suites, write_json
    check_names(args.suites, (*SUITES, *ROWS, *LEARNING))
    learning = [name for name in dict.fromkeys(args.suites) if name in LEARNING]
    if args.only and (len(learning) != 1 or learning != args.suites):
        raise UserError(f'--only is for one suite of learning and comes after it, got --only {" ".join(args.only)} '
                        f'and the suites {" ".join(args.suites) or "of speed"}')
    jobs = args.jobs if args.jobs is not None else default_jobs() if learning else 1
    options = LearningOptions(Path(args.out), jobs, tuple(args.seeds), tuple(args.only), args.photographs, args.bccd,
                              args.raccoon, args.amp)
    timed = [name for name in args.suites if name not in LEARNING]
    if args.json and learning and not timed:
        raise UserError(f'--json is for suites of speed, got {" ".join(learning)}, which write into --out')
    rows = run_suites(timed, args.device) if timed or not args.suites else []
    for row in rows:
        unit = row.get('unit', 's')
        print(f"{row['suite']:14} ours {row['ours_s']:.4f} {unit}, peer {row['peer_s']:.4f} {unit}, "
              f"ratio {row['ratio']:.2f} ({row['peer']}; {row['device']}, {row['threads']} threads)")
    if args.json:
        write_json(rows, args.json)
    for name in learning:
        print(LEARNING[name](options))
    return 0
