"""Sizes of boxes beside anchors, drawn."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator
from torch import Tensor

from mgdet_plugin.prepare.faults.input_fit import NetworkInput
from mgdet_plugin.runs.run_axes import BLUE, GREEN, ORANGE, PINK, RED, SKY, SMALL, new_figure, plain_axes, png

_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)  # levels, coarse first
_MARKERS = ('s', 'o', '^', 'D', 'v', 'P')
MOST = 5_000  # boxes drawn, evenly spread


def sizes_figure(sizes: Tensor, inputs: Mapping[str, NetworkInput]) -> bytes:
    """Boxes and anchors as PNG, a panel for each set of anchors, each box in the colour of the level it is assigned to.

    Args:
        sizes: (G, 2) width and height of boxes in pixels of the input.
        inputs: Title of a panel -> its anchors.
    """
    figure = new_figure(5.0)
    panels = figure.subplots(1, len(inputs), sharex=True, sharey=True, squeeze=False)
    drawn = sizes[::-(-len(sizes) // MOST)]
    for axes, (title, into) in zip(panels[0], inputs.items()):
        _panel(axes, drawn, into, title)
    return png(figure)


def _panel(axes: Axes, sizes: Tensor, into: NetworkInput, title: str) -> None:
    level, _ = into.assigner.match_anchors(torch.cat((torch.zeros_like(sizes), sizes), 1))
    for place, (stride, anchors) in enumerate(zip(into.strides, into.anchors)):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        width, height = sizes[level == place].T.tolist() if bool((level == place).any()) else ([], [])
        axes.plot(width, height, '.', ms=3, alpha=0.35, color=colour, mew=0, rasterized=True)
        axes.plot(*zip(*anchors), marker, ms=9, color=colour, mec='black', mew=1.2, ls='', label=f'stride {stride}')
    axes.set(xscale='log', yscale='log', xlabel='width, pixels of the input', ylabel='height')
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ''))
        axis.label.set_fontsize(SMALL)
    axes.set_title(title, loc='left', fontsize=10, weight='bold')
    plain_axes(axes)
    axes.legend(loc='upper left', frameon=False, fontsize=SMALL)
