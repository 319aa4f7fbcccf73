"""Draw the rates of both scenarios from the logs of their runs: ``python tests/support/draw_rates.py docs/rates.png``.

Circles are the rows of ``tests/data/rates_by_hand.csv``; ``tests/engine/test_rates_by_hand.py`` holds them and every
other iteration to the log.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import mgdet_plugin  # noqa: F401  before mmdet
from tests.support.rates_run import GROUPS, Point, logged_rates, points_by_hand, stages_of
from tests.support.small_run import make_dataset
from tests.support.staged_run import STEPS

mpl.use('Agg')
from matplotlib import pyplot as plt

TITLES = dict(full='Full pretrained weights (mgdet_model5_staged.py)',
              backbone='Pretrained backbone (mgdet_backbone_staged.py)')
# Rates often coincide: the lines are of different widths, the narrowest on top. The last is the place when frozen.
LOOKS = dict(bbox_head=('#8fbce6', 9.0, 1.1e-8), neck=('#f08c1a', 5.0, 2.1e-8), backbone=('#1b2a49', 1.5, 4.0e-8))
SHADES = ('#eef1f4', '#ffffff')
WIDE_EPOCHS, WIDER = 14, 6  # the first epochs are drawn that many times as wide
TICKS = (0, 2, 4, 6, 8, 10, 12, 14, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def widen(epochs: np.ndarray) -> np.ndarray:
    """Place of an epoch on the axis."""
    return np.where(epochs < WIDE_EPOCHS, epochs * WIDER, epochs + WIDE_EPOCHS * (WIDER - 1))


def narrow(places: np.ndarray) -> np.ndarray:
    """Epoch at a place, the inverse of :func:`widen`."""
    return np.where(places < WIDE_EPOCHS * WIDER, places / WIDER, places - WIDE_EPOCHS * (WIDER - 1))


def draw_stages(axes: Axes, stages: Sequence[dict]) -> list[int]:
    """Shade and name the stages; returns their edges in epochs."""
    edges = [0, *accumulate(stage['epochs'] for stage in stages)]
    for index, stage in enumerate(stages):
        axes.axvspan(edges[index], edges[index + 1], color=SHADES[index % 2], zorder=0)
        middle = narrow(widen(np.array(edges[index:index + 2])).mean())
        axes.text(middle, 0.965, f"'{stage['name']}', freeze level {stage['freeze_level']}",
                  transform=axes.get_xaxis_transform(), ha='center', va='top', fontsize=10, weight='bold')
    return edges


def draw_scenario(axes: Axes, stages: Sequence[dict], rates: Sequence[dict[str, float]],
                  points: Sequence[Point]) -> None:
    """One panel: lines of the log, circles of the table."""
    edges = draw_stages(axes, stages)
    epochs = (np.arange(len(rates)) + 0.5) / STEPS  # the middle of each iteration
    for group, (color, width, frozen_at) in LOOKS.items():
        logged = np.array([each[group] for each in rates])
        for begin, end in pairwise(edges):  # no line across an edge
            part = slice(begin * STEPS, end * STEPS)
            axes.plot(epochs[part], np.where(logged[part] > 0, logged[part], frozen_at), color=color, lw=width,
                      solid_capstyle='butt', label=f'{group}, from the log' if begin == 0 else None)
    by_hand = sorted({(point.iteration, point.rates[group] or LOOKS[group][2])
                      for point in points for group in GROUPS})
    axes.plot([(iteration + 0.5) / STEPS for iteration, _ in by_hand], [rate for _, rate in by_hand], 'o', ms=8,
              mfc='none', mec='#c2185b', mew=1.5, label='worked out by hand', zorder=5, clip_on=False)
    axes.axhline(7e-8, color='#777777', lw=0.8)
    axes.axvline(WIDE_EPOCHS, color='#777777', lw=0.8, ls=':')
    axes.set(yscale='log', xlim=(0, edges[-1]), ylim=(1.2e-8, 9e-4), ylabel='learning rate')
    axes.set_xscale('function', functions=(widen, narrow))
    axes.set_xticks(TICKS)
    axes.set_yticks([2.9e-8, 1e-7, 1e-6, 1e-5, 1e-4], ['frozen', '1e-7', '1e-6', '1e-5', '1e-4'])
    axes.tick_params(labelsize=10)
    axes.tick_params(axis='y', which='minor', left=False)
    for rate in (1e-7, 1e-6, 1e-5, 1e-4):
        axes.axhline(rate, color='#d5d9de', lw=0.6, zorder=0.5)


def main(path: Path) -> None:
    """Run both scenarios and draw them into a file."""
    torch.set_num_threads(1)  # on so small a model threads only wait for each other
    figure, panels = plt.subplots(2, 1, figsize=(11, 8.4), layout='constrained')
    with TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / 'set')
        for axes, (scenario, title) in zip(panels, TITLES.items()):
            (Path(folder) / scenario).mkdir()
            stages = stages_of(scenario)
            rates = logged_rates(Path(folder) / scenario, data, stages, scenario)
            draw_scenario(axes, stages, rates, points_by_hand(scenario))
            axes.set_title(title, fontsize=12, loc='left')
    panels[-1].set_xlabel(f'epochs done (the first {WIDE_EPOCHS}, up to the dotted line, are drawn {WIDER} times as '
                          'wide)', fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, fontsize=10,
                  frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    Image.open(buffer).convert('RGB').quantize(64).save(path, optimize=True)  # a third of the bytes


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: python tests/support/draw_rates.py IMAGE')
    main(Path(sys.argv[1]))
