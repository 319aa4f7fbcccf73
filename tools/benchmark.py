#!/usr/bin/env python
"""Speed against named peers measured in the same run; a ratio below 1 is faster than the peer.

    python tools/benchmark.py [SUITE ...] [--device D] [--json F]
"""
import argparse

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.analysis.benchmark import ROWS, SUITES, run_suites, write_json
from mgdet_plugin.errors import user_errors_to_exit

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('suites', nargs='*', metavar='SUITE',
                        help=f'any of {", ".join((*SUITES, *ROWS))}; default: all')
    parser.add_argument('--device', default='cpu', help='torch device')
    parser.add_argument('--json', metavar='F', help='file for the figures')
    args = parser.parse_args()
    with user_errors_to_exit():
        rows = run_suites(args.suites, args.device)
        for row in rows:
            unit = row.get('unit', 's')
            print(f"{row['suite']:14} ours {row['ours_s']:.4f} {unit}, peer {row['peer_s']:.4f} {unit}, "
                  f"ratio {row['ratio']:.2f} ({row['peer']}; {row['device']}, {row['threads']} threads)")
        if args.json:
            write_json(rows, args.json)
