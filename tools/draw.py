#!/usr/bin/env python
"""Draw a model's detections on the first images of a config's test set.

    python tools/draw.py CFG CKPT OUT.png [--count 6] [--score-thr 0.3] [--enlarge 2]
"""
import argparse

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.common.errors import user_errors_to_exit
from mgdet_plugin.deploy.draw import draw_detections

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out')
    parser.add_argument('--count', type=int, default=6, help='images to draw')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that is drawn')
    parser.add_argument('--enlarge', type=int, default=2, help='factor on the sides of small images')
    args = parser.parse_args()
    with user_errors_to_exit():
        count = draw_detections(args.config, args.checkpoint, args.out, args.count, args.score_thr, args.enlarge)
        print(f'{count} detections drawn in {args.out}')
