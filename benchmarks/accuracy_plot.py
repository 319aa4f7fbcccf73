"""The head to head as a plot, and all of its report written."""
from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.accuracy_report import (
    HEADS,
    OURS,
    PEER,
    Accuracy,
    Run,
    lead,
    mean_curve,
)
from mgdet_plugin.runs.run_axes import BLUE, GREEN, RED, SMALL, labels_once, new_figure, plain_axes

STYLES = {OURS: (BLUE, 'o', '-'), PEER: (RED, 's', '--')}  # colour, marker, line
HEIGHT = 4.6  # inches


def accuracy_figure(result: Accuracy) -> Figure:
    """AP on the test set against the epoch, a panel a data set: a thin line a seed, a thick one the mean of a head."""
    figure = new_figure(HEIGHT)
    sets = [data for data in result.sets if result.names(data, HEADS)]
    panels = list(figure.subplots(1, max(1, len(sets)), squeeze=False)[0])
    for axes, data in zip(panels, sets):
        for head in result.names(data, HEADS):
            _draw_head(axes, result.of(data, head), head)
        found = lead(result, data)
        if found:
            axes.axhline(found.target, color=STYLES[PEER][0], lw=0.9, ls=(0, (1, 2)), zorder=1)
            if found.reached:
                axes.axvline(found.reached, color=GREEN, lw=1.2, ls=(0, (4, 2)), zorder=1,
                             label=f'{OURS} at the last mean of {PEER}')
        _finish(axes, data)
    if sets:
        figure.legend(*labels_once(panels), loc='outside lower center', ncols=4, frameon=False, fontsize=SMALL)
    return figure


def _draw_head(axes: Axes, runs: Sequence[Run], head: str) -> None:
    color, marker, line = STYLES[head]
    for run in runs:
        axes.plot(list(run.curve), [each['AP'] for each in run.curve.values()], color=color, lw=0.8, ls=line,
                  alpha=0.5, zorder=2)
    mean = mean_curve(runs)
    axes.plot(list(mean), list(mean.values()), color=color, lw=2.4, ls=line, marker=marker, ms=5, zorder=3,
              label=f'{head}, mean of seeds (thin: each)')


def _finish(axes: Axes, data: str) -> None:
    axes.set_title(f'{data}: AP on the test set', loc='left', fontsize=10, weight='bold')
    axes.set_xlabel('epochs done', fontsize=SMALL)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
    plain_axes(axes, 'y')
