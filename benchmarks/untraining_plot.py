"""The plane of old against new AP with all ways of fine-tuning in it, each named where it lies."""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.untraining_report import BlendPoint, Comparison
from benchmarks.untraining_ways import BLENDS, KEEP, LABELLED, RECOMMENDED, STAGED, SWEEP, TODAY, Way
from mgdet_plugin.runs.run_axes import BLUE, GREEN, GREY, ORANGE, SKY, SMALL, new_figure, plain_axes

STYLES = {TODAY: (GREY, 'o', 8), KEEP: (BLUE, 's', 8), SWEEP: (SKY, '.', 9), LABELLED: (ORANGE, 'D', 8)}
"""Family -> colour, marker and its size in points."""
HEIGHT = 6.6  # inches
_DISTANCES = (9, 14, 20, 28, 38, 50, 64, 80, 100)  # points from a mark to its name
_DIRECTIONS = 16


def comparison_figure(comparison: Comparison, known: Mapping[str, Way]) -> Figure:
    """AP on the new against AP on the old domain: a small mark a run, a large one a way's mean, blends as lines.

    Args:
        comparison: What was measured.
        known: Name of a way -> the way, for its title and family.
    """
    figure = new_figure(HEIGHT)
    axes = figure.subplots()
    start = (comparison.start.old_ap, comparison.start.new_ap)
    axes.plot(*start, '*', color='black', ms=15, ls='', zorder=4)
    names = {start: 'loaded weights'}
    for way in comparison.ways:
        if way not in known:
            continue  # a blend, which lies on its line
        color, marker, size = STYLES[known[way].family]
        if way == RECOMMENDED:
            color, marker, size = GREEN, '*', 20
        old, new = ([getattr(row.scores, name) for row in comparison.of(way)] for name in ('old_ap', 'new_ap'))
        mean = statistics.fmean(old), statistics.fmean(new)
        if len(old) > 1:
            axes.plot(old, new, marker, color=color, ms=4, alpha=0.5, mew=0, ls='', zorder=3)
        axes.plot(*mean, marker, color=color, ms=size, mec='black', mew=0.7, ls='', zorder=5, label=way)
        if known[way].family != SWEEP:
            names[mean] = known[way].title
    for way in BLENDS:
        line = blend_line(comparison, way)
        if line:
            axes.plot(*zip(*line), ':', marker='.', color='black', lw=1.1, ms=4, zorder=2, label=f'{way} blended')
    _finish(axes, start, known, comparison)
    FigureCanvasAgg(figure).draw()  # settles where the axes lie; names are placed in points
    figure.set_layout_engine('none')
    _name(axes, names, {known[RECOMMENDED].title} if RECOMMENDED in known else set())
    return figure


def _finish(axes: Axes, start: tuple[float, float], known: Mapping[str, Way], comparison: Comparison) -> None:
    """Titles, axes, what is kept of the loaded weights at a glance, and the families."""
    axes.set_title('AP on the test sets of both domains', loc='left', fontsize=10, weight='bold')
    axes.set_xlabel('AP on the old domain: what is kept', fontsize=SMALL)
    axes.set_ylabel('AP on the new domain: what is won', fontsize=SMALL)
    axes.margins(x=0.09, y=0.06)
    axes.axvline(start[0], color='#9aa3af', lw=0.8, ls='--', zorder=1)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.15)
    plain_axes(axes)
    there = dict.fromkeys(known[way].family for way in comparison.ways if way in known)
    for family in there:
        color, marker, size = STYLES[family]
        axes.plot([], [], marker, color=color, ms=size, mec='black', mew=0.7, ls='', label=f'_{family}')
    marks = [line for line in axes.get_lines() if str(line.get_label())[1:] in there]
    texts = [str(line.get_label())[1:] for line in marks]
    blends = [line for line in axes.get_lines() if str(line.get_label()).endswith('blended')][:1]
    axes.figure.legend([*marks, *blends], [*texts, *['blends with the loaded weights'] * len(blends)],
                       loc='outside lower center', ncols=5, frameon=False, fontsize=SMALL)


def _name(axes: Axes, names: Mapping[tuple[float, float], str], bold: set[str]) -> None:
    """Write a name beside each point, where no other name and no mark is; a line leads to one that stands far off."""
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    scale = axes.figure.dpi / 72  # pixels a point
    frame = axes.get_window_extent(renderer)
    marks = [axes.transData.transform(point) for line in axes.get_lines() if line.get_linestyle() == 'None'
             for point in np.asarray(line.get_xydata())]
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in marks]
    for point, name in sorted(names.items(), key=lambda each: (each[1] not in bold, each)):
        text = axes.annotate(name, point, xytext=(0, 0), textcoords='offset points', fontsize=SMALL, zorder=7,
                             weight='bold' if name in bold else 'normal', va='center', ha='center')
        box = text.get_window_extent(renderer).padded(scale)
        x, y = axes.transData.transform(point)
        dx, dy = next((place for place in _places(box, scale) if _is_free(
            box.translated(place[0], place[1]), taken, frame)), (0.0, 0.0))
        text.set_position((dx / scale, dy / scale))
        placed = box.translated(dx, dy)
        taken.append(placed)
        near = min(max(x, placed.x0), placed.x1), min(max(y, placed.y0), placed.y1)
        if math.dist(near, (x, y)) > 11 * scale:
            ends = axes.transData.inverted().transform([(x, y), near])
            axes.plot(*zip(*ends), '-', color='#9aa3af', lw=0.7, zorder=2)


def _places(box: Bbox, scale: float) -> Iterator[tuple[float, float]]:
    """Where a name may stand, the nearest first: offsets of its middle from the point, in pixels."""
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            yield (math.cos(angle) * (distance * scale + box.width / 2),
                   math.sin(angle) * (distance * scale + box.height / 2))


def _is_free(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> bool:
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not box.count_overlaps(taken)


def blend_line(comparison: Comparison, way: str = STAGED) -> list[tuple[float, float]]:
    """(Old AP, new AP) along the blend of a way: loaded weights, means of each share, mean of its runs."""
    own = [each for each in comparison.blends if each.way == way]
    if not own:
        return []
    shares: dict[float, list[BlendPoint]] = {}
    for each in sorted(own, key=lambda point: point.alpha):
        shares.setdefault(each.alpha, []).append(each)
    parts = [[comparison.start], *([each.scores for each in points] for points in shares.values()),
             [row.scores for row in comparison.of(way)]]
    return [(statistics.fmean(each.old_ap for each in part), statistics.fmean(each.new_ap for each in part))
            for part in parts]
