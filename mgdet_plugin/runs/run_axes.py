"""What figures share: size, colours and legends; and the axis of epochs of a training run with stages and events."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import cycle, pairwise
from typing import Literal

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from mgdet_plugin.common.guard_record import Event
from mgdet_plugin.runs.run import Run

# Okabe and Ito's, which colour-blind readers can tell apart; lines also differ in style or marker.
BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = (
    '#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#5f6672')
PARTS = dict(backbone=BLUE, neck=ORANGE, bbox_head=GREEN)  # part of the model -> colour; others take what is left
EVENTS = dict(drift=('v', RED), forgetting=('<', GREEN), spike=('^', ORANGE), divergence=('X', PINK),
              nan=('D', 'black'), mismatch=('P', BLUE))  # marker, colour
SHADES = ('#e6ecf4', '#f8fafc')
WIDTH = 11.0  # inches
SMALL = 8.5  # points
_LETTER = 0.56 * SMALL  # points, about the width of a letter
_MARGIN = 0.84  # share of a panel's width that is left for its axis


def new_figure(height: float) -> Figure:
    """A white figure of the width all have, and a height in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=110, layout='constrained', facecolor='white')
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """A figure as an SVG, the same bytes whenever it is drawn."""
    buffer = BytesIO()
    with rc_context({'svg.hashsalt': 'mgdet'}):
        figure.savefig(buffer, format='svg', metadata=dict(Date=None))
    return buffer.getvalue()


def part_colors(parts: Iterable[str]) -> dict[str, str]:
    """Part of the model -> its colour."""
    others = cycle((PINK, RED, SKY, GREY))
    return {part: PARTS[part] if part in PARTS else next(others) for part in dict.fromkeys(parts)}


def plain_axes(axes: Axes, grid: Literal['both', 'x', 'y'] = 'both') -> None:
    """Small ticks, a faint grid behind the data and no frame at the top and right."""
    axes.tick_params(which='both', labelsize=SMALL)
    axes.grid(axis=grid, color='#c9d0d9', lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def finish(axes: Axes, run: Run, title: str, width: float, ylabel: str = '', events: str | None = '') -> None:
    """Give a panel its axis of epochs, title, shaded stages and marked events.

    Args:
        axes: The panel, its data drawn.
        run: The run.
        title: Its title.
        width: Its width in inches.
        ylabel: Name of the other axis.
        events: A loss: those events are marked that name it; '' marks all, None marks none.
    """
    end = max(run.epochs, 1.0)
    axes.set_xlim(0, end * 1.01)
    marked = [each for each in run.events if events is not None and (not events or events in each.values)]
    if marked:
        _mark(axes, run, marked)
    rows = _name_stages(axes, run, end, width)
    axes.set_title(title, loc='left', fontsize=10, weight='bold', pad=5 + 11 * rows)
    axes.set_xlabel('epochs done', fontsize=SMALL)
    axes.set_ylabel(ylabel, fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
    plain_axes(axes, 'y')


def _name_stages(axes: Axes, run: Run, end: float, width: float) -> int:
    """Shade the stages and name each above its beginning, in as many rows as returned: none runs into another."""
    edges = [*(float(each.first_epoch) for each in run.stages), end * 1.01]
    free: list[float] = []  # the epoch from which each row is free
    for index, (stage, (begin, after)) in enumerate(zip(run.stages, pairwise(edges))):
        axes.axvspan(begin, after, color=SHADES[index % 2], lw=0, zorder=-2)
        if begin:
            axes.axvline(begin, color='#9aa3af', lw=0.8, zorder=-1)
        row = next((row for row, at in enumerate(free) if at <= begin), len(free))
        reach = begin + (len(stage.name) + 1) * _LETTER / 72 / (width * _MARGIN) * end
        free[row:row + 1] = [reach]
        axes.annotate(stage.name, (begin, 1), xycoords=axes.get_xaxis_transform(), xytext=(1, 2 + 11 * row),
                      textcoords='offset points', fontsize=SMALL, color='#4b5563', va='bottom', ha='left',
                      annotation_clip=False)
    return len(free)


def _mark(axes: Axes, run: Run, events: Sequence[Event]) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(low * (low / high) ** 0.14 if axes.get_yscale() == 'log' else low - (high - low) * 0.14, high)
    for event in events:
        marker, color = EVENTS.get(event.kind, ('o', GREY))
        at = float(run.epochs_at([event.iter])[0])
        axes.axvline(at, color=color, lw=0.9, ls=(0, (1, 2)), zorder=1)
        axes.plot(at, 0.055, marker, ms=7, color=color, mec='white', mew=0.6, ls='', zorder=6, clip_on=False,
                  transform=axes.get_xaxis_transform(), label=f'event: {event.kind}')


def log_axis(axes: Axes) -> None:
    """Make the other axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.4g}'))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ''))
    axes.tick_params(axis='y', which='minor', left=False)


def labels_once(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """What a legend of several panels shows, each label once."""
    labelled = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())}
    return list(labelled.values()), list(labelled)


def legend_right(axes: Axes) -> None:
    """A legend beside the panel."""
    axes.legend(*labels_once([axes]), loc='upper left', bbox_to_anchor=(1.005, 1), frameon=False, fontsize=SMALL,
                borderaxespad=0)


def legend_for(figure: Figure, panels: Sequence[Axes], place: SubplotSpec | None = None) -> None:
    """One legend for several panels of a figure: in a free place of the grid, or below it."""
    if place is None:
        figure.legend(*labels_once(panels), loc='outside lower center', ncols=4, frameon=False, fontsize=SMALL)
        return
    blank = figure.add_subplot(place)
    blank.axis('off')
    blank.legend(*labels_once(panels), loc='center left', frameon=False, fontsize=SMALL)
