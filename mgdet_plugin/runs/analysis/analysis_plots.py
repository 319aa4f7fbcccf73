"""Figures of an evaluation, one function each: a column a set, weights before grey, weights after blue."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mgdet_plugin.runs import run_axes as panel
from mgdet_plugin.runs.analysis.analysis import OVERLAPS, SIZES, Analysis, mean
from mgdet_plugin.runs.analysis.average_precision import GRID, RECALLS
from mgdet_plugin.runs.analysis.calibration import BINS, OVERLAP_EDGES
from mgdet_plugin.runs.analysis.error_kinds import KINDS
from mgdet_plugin.runs.analysis.evaluation_record import AFTER, BEFORE, DRAWN_OVERLAPS, Evaluation
from mgdet_plugin.runs.run_axes import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, SMALL

COLORS = {BEFORE: '#9aa3af', AFTER: BLUE}
FEW = 10  # classes that have a colour each
MOST_BARS, MOST_CELLS = 40, 20  # classes drawn as bars, and as rows of a matrix


def draw_analysis(evaluation: Evaluation) -> dict[str, Figure]:
    """Name of a figure -> figure, in the order of :data:`FIGURES`."""
    return {name: draw(evaluation) for name, draw in FIGURES.items()}


def _panels(evaluation: Evaluation, height: float, rows: int = 1, **options: object) -> tuple[Figure, np.ndarray]:
    """A figure with a column a set, (rows, sets) panels."""
    figure = panel.new_figure(height)
    return figure, figure.subplots(rows, len(evaluation.domains), squeeze=False, **options)  # type: ignore[call-overload]


def _weights(measured: dict[str, Analysis]) -> Iterator[tuple[str, Analysis, str]]:
    """Name, analysis and colour of each, before first."""
    return ((name, one, COLORS[name]) for name, one in measured.items())


def _finish(axes: Axes, title: str, xlabel: str = '', ylabel: str = '') -> None:
    axes.set_title(title, fontsize=10, loc='left')
    axes.set_xlabel(xlabel, fontsize=SMALL)
    axes.set_ylabel(ylabel, fontsize=SMALL)
    panel.plain_axes(axes)


def _unit(axes: Axes, *, square: bool = True) -> None:
    axes.set_xlim(0, 1)
    if square:
        axes.set_ylim(0, 1.02)


def _class_styles(count: int) -> Iterator[tuple[str, str]]:
    """Colour and line style of each of a few classes."""
    colors = (BLUE, ORANGE, GREEN, RED, PINK, SKY, 'black')
    return zip(cycle(colors), (style for style in ('-', '--', ':') for _ in colors))


def _notable(values: np.ndarray) -> list[int]:
    """Places of the classes that have a colour: all where they are few, else the lowest and highest; no NaN."""
    known = [int(place) for place in np.argsort(values) if not np.isnan(values[place])]
    return sorted(known) if len(known) <= FEW else known[:3] + known[-3:]


def draw_precision_recall(evaluation: Evaluation) -> Figure:
    """Precision against recall: all classes at three overlaps, and each class at 0.5."""
    figure, axes = _panels(evaluation, 7.6, 2)
    for (above, below), (domain, measured) in zip(axes.T, evaluation.domains.items()):
        for name, one, color in _weights(measured):
            for level, style in zip(DRAWN_OVERLAPS, ('-', '--', ':')):
                average = mean(one.curves.average[level])
                above.plot(RECALLS, np.nanmean(one.curves.precision[level], axis=1), style, color=color, lw=1.8,
                           label=f'{_said(evaluation, name)}IoU {OVERLAPS[level]:.2g}, AP {average:.3f}')
        _unit(above)
        _finish(above, f'{domain}: all classes', 'recall', 'precision')
        above.legend(fontsize=SMALL, frameon=False)
        one = measured[AFTER]
        _class_lines(below, one, RECALLS, one.curves.precision[0].T, one.curves.average[0], 'AP50')
        _finish(below, f'{domain}: each class, IoU 0.5{_after(evaluation)}', 'recall', 'precision')
    return figure


def draw_confidence(evaluation: Evaluation) -> Figure:
    """Precision, recall and F1 of all that has at least a score, and F1 of each class."""
    figure, axes = _panels(evaluation, 7.6, 2)
    for (above, below), (domain, measured) in zip(axes.T, evaluation.domains.items()):
        one = measured[AFTER]
        for values, color, label in zip(one.overall[:3], (GREEN, ORANGE, BLUE), ('precision', 'recall', 'F1')):
            above.plot(GRID, values, color=color, lw=2.2 if label == 'F1' else 1.4, label=label)
        if BEFORE in measured:
            above.plot(GRID, measured[BEFORE].overall.f1, '--', color=COLORS[BEFORE], lw=1.8, label='F1 before')
        if not np.isnan(one.overall.threshold):
            above.plot(one.threshold, one.overall.best[2], '*', color='black', ms=12, ls='',
                       label=f'best F1 {one.overall.best[2]:.3f} at {one.threshold:.2f}')
        _unit(above)
        _finish(above, f'{domain}: all classes, IoU 0.5', 'least score', '')
        above.legend(fontsize=SMALL, frameon=False)
        best = np.array([each.best[2] if count else np.nan
                         for each, count in zip(one.by_class, one.matched.positives)])
        _class_lines(below, one, GRID, np.array([each.f1 for each in one.by_class]), best, 'best')
        for place in filter(best.__getitem__, _notable(best)):
            below.plot(one.by_class[place].threshold, best[place], 'o', ms=4, color='black', zorder=4)
        _finish(below, f'{domain}: F1 of each class, its best marked{_after(evaluation)}', 'least score', 'F1')
    return figure


def _class_lines(axes: Axes, one: Analysis, at: np.ndarray, curves: np.ndarray, values: np.ndarray, what: str) -> None:
    """A line a class (C, X), those notable by their values (C,) coloured and named."""
    notable = _notable(values)
    for label in set(np.flatnonzero(~np.isnan(values)).tolist()) - set(notable):
        axes.plot(at, curves[label], color=COLORS[BEFORE], lw=0.6, alpha=0.6)
    for label, (color, style) in zip(notable, _class_styles(len(notable))):
        axes.plot(at, curves[label], style, color=color, lw=1.5,
                  label=f'{one.classes[label]}, {what} {values[label]:.3f}')
    _unit(axes)
    if notable:
        axes.legend(fontsize=SMALL - 1, frameon=False, ncols=2 if len(notable) > 5 else 1)


def draw_class_ap(evaluation: Evaluation) -> Figure:
    """AP of each class, the lowest last."""
    rows = max(min(len(one.classes), MOST_BARS) for one in _afters(evaluation))
    figure, axes = _panels(evaluation, 1.3 + 0.24 * rows)
    for each, (domain, measured) in zip(axes[0], evaluation.domains.items()):
        values = {name: np.array([mean(column) for column in one.curves.average.T]) for name, one in measured.items()}
        order = [place for place in np.argsort(values[AFTER]) if not np.isnan(values[AFTER][place])]
        shown = order if len(order) <= MOST_BARS else order[:MOST_BARS // 2] + order[-MOST_BARS // 2:]
        places = np.arange(len(shown))
        each.barh(places, values[AFTER][shown], color=BLUE, height=0.62, label='after' if BEFORE in values else 'AP')
        if BEFORE in values:
            each.plot(values[BEFORE][shown], places, 'd', color=ORANGE, mec='black', mew=0.6, ms=7, ls='',
                      label='before', zorder=3, clip_on=False)
        for place, value in zip(places, values[AFTER][shown]):
            each.text(value + 0.01, place, f'{value:.2f}', va='center', fontsize=SMALL - 1)
        one = measured[AFTER]
        each.set_yticks(places, [f'{one.classes[label]} ({one.matched.positives[label]:,})' for label in shown])
        each.set_xlim(0, 1)
        left = f', {len(shown)} of {len(order)}' if len(shown) < len(order) else ''
        _finish(each, f'{domain}: AP of each class (its objects{left})', 'AP, IoU 0.5 to 0.95')
    if evaluation.is_compared:
        panel.legend_for(figure, axes[0])
    return figure


def draw_size_ap(evaluation: Evaluation) -> Figure:
    """AP by the size of objects, COCO's ranges of areas in the original picture."""
    figure, axes = _panels(evaluation, 3.0, sharey=True)
    ranges = ('below 32²', '32² to 96²', 'above 96² pixels')
    for each, (domain, measured) in zip(axes[0], evaluation.domains.items()):
        width = 0.8 / len(measured)
        for shift, (name, one, color) in enumerate(_weights(measured)):
            values = [mean(one.sizes[size]) for size in SIZES]
            at = np.arange(len(SIZES)) + (shift - (len(measured) - 1) / 2) * width
            bars = each.bar(at, np.nan_to_num(values), width * 0.92, color=color, label=name)
            each.bar_label(bars, ['none' if np.isnan(value) else f'{value:.3f}' for value in values], fontsize=SMALL)
        areas = np.concatenate([result.areas[~result.crowd] for result in measured[AFTER].results])
        counts = [int(((areas >= low) & (areas <= high)).sum()) for low, high in SIZES.values()]
        each.set_xticks(range(len(SIZES)), [f'{size}, {extent}\n{count:,} objects'
                                            for size, extent, count in zip(SIZES, ranges, counts)])
        each.margins(y=0.15)
        _finish(each, f'{domain}: AP by size', '', 'AP')
    if evaluation.is_compared:
        panel.legend_for(figure, axes[0])
    return figure


def draw_errors(evaluation: Evaluation) -> Figure:
    """The AP that each kind of error costs."""
    figure, axes = _panels(evaluation, 3.2, sharex=True)
    for each, (domain, measured) in zip(axes[0], evaluation.domains.items()):
        height = 0.8 / len(measured)
        for shift, (name, one, color) in enumerate(_weights(measured)):
            values = [one.errors.gained[kind] for kind in KINDS]
            at = np.arange(len(KINDS)) + (shift - (len(measured) - 1) / 2) * height
            bars = each.barh(at, values, height * 0.9, color=color, label=f'{name}, AP50 {one.errors.average:.3f}')
            each.bar_label(bars, [f'{value:.3f}' for value in values], fontsize=SMALL - 1, padding=2)
        each.set_yticks(range(len(KINDS)), KINDS)
        each.invert_yaxis()
        each.margins(x=0.12)
        _finish(each, f'{domain}: what each kind of error costs', 'AP50 gained where it alone is mended')
        if evaluation.is_compared:
            each.legend(fontsize=SMALL, frameon=False, loc='best')
    return figure


def draw_confusion(evaluation: Evaluation) -> Figure:
    """Objects by class and that of what is found on them, before above after."""
    rows = 2 if evaluation.is_compared else 1
    cells = max(min(len(one.classes), MOST_CELLS) for one in _afters(evaluation)) + 1
    figure, axes = _panels(evaluation, rows * (1.6 + min(0.34 * cells, 5.0)), rows)
    for column, (domain, measured) in zip(axes.T, evaluation.domains.items()):
        shown = _most_confused(measured[AFTER].confusion)
        for each, (name, one, _) in zip(column, _weights(measured)):
            title = f'{domain}{f", {name}" if rows > 1 else ""}: score of at least {one.threshold:.2f}'
            _matrix(each, one.confusion[np.ix_(shown, shown)], [*one.classes, 'nothing'], shown, title)
    return figure


def _most_confused(counts: np.ndarray) -> list[int]:
    """Places of the rows that are drawn: all, or those with the most that is wrong; the last is always there."""
    inner = counts[:-1, :-1] - np.diag(np.diag(counts[:-1, :-1]))
    wrong = inner.sum(axis=0) + inner.sum(axis=1)
    return [*sorted(np.argsort(-wrong, kind='stable')[:MOST_CELLS].tolist()), len(counts) - 1]


def _matrix(axes: Axes, counts: np.ndarray, names: Sequence[str], shown: Sequence[int], title: str) -> None:
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share[-1] = 0  # of no object there is no share
    axes.imshow(share, cmap='Blues', vmin=0, vmax=1, aspect='auto')
    for row, column in zip(*np.nonzero(counts)):
        axes.text(column, row, f'{counts[row, column]}', ha='center', va='center', fontsize=SMALL - 1.5,
                  color='white' if share[row, column] > 0.55 else '#1b2430')
    labels = [names[place] for place in shown]
    long = max(map(len, labels)) > 3 and len(labels) > 4
    axes.set_xticks(range(len(labels)), [*labels[:-1], 'missed'], rotation=90 if long else 0)
    axes.set_yticks(range(len(labels)), labels)
    _finish(axes, title, 'found as', 'object')
    axes.grid(visible=False)


def draw_overlaps(evaluation: Evaluation) -> Figure:
    """How well the boxes lie on their objects."""
    figure, axes = _panels(evaluation, 2.9)
    for each, (domain, measured) in zip(axes[0], evaluation.domains.items()):
        for name, one, color in _weights(measured):
            good = one.overlaps[one.overlaps >= OVERLAPS[0]]
            label = f'{_said(evaluation, name)}mean above 0.5: {mean(good):.3f}' if good.size else f'{name}: none'
            style = dict(color=color, alpha=0.85) if name == AFTER else dict(color='#5f6672', histtype='step', lw=1.6)
            each.hist(one.overlaps, OVERLAP_EDGES, label=label, zorder=2 if name == AFTER else 3,
                      **style)  # type: ignore[arg-type]
        each.axvline(OVERLAPS[0], color=RED, lw=1.2, ls='--', label='right from 0.5 on', zorder=4)
        each.set_xlim(OVERLAP_EDGES[0], 1)
        _finish(each, f'{domain}: overlap with the object', 'IoU', 'detections')
        each.legend(fontsize=SMALL, edgecolor='none', loc='upper left').set_zorder(5)
    return figure


def draw_calibration(evaluation: Evaluation) -> Figure:
    """Share of right detections against their score, and how many there are."""
    figure, axes = _panels(evaluation, 5.2, 2, sharex=True, height_ratios=[2.4, 1])
    middles = (np.arange(BINS) + 0.5) / BINS
    for (above, below), (domain, measured) in zip(axes.T, evaluation.domains.items()):
        above.plot([0, 1], [0, 1], color=GREY, lw=1, ls='--', label='scores that say what they mean')
        for name, one, color in _weights(measured):
            found = one.calibration
            known = found.counts > 0
            above.plot(found.score[known], found.precision[known], 'o-', color=color, lw=1.8, ms=4.5,
                       label=f'{_said(evaluation, name)}error {found.error:.3f}')
            below.bar(middles, found.counts, 0.092, color=color if name == AFTER else 'none',
                      edgecolor='none' if name == AFTER else '#5f6672', zorder=2 if name == AFTER else 3)
        _unit(above)
        _unit(below, square=False)
        below.set_yscale('symlog', linthresh=1)
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _finish(above, f'{domain}: are scores what they say?', '', 'right')
        _finish(below, '', 'score', 'detections')
        above.legend(fontsize=SMALL, frameon=False, loc='upper left')
    return figure


def _afters(evaluation: Evaluation) -> list[Analysis]:
    return [measured[AFTER] for measured in evaluation.domains.values()]


def _said(evaluation: Evaluation, name: str) -> str:
    """What a label begins with: which weights, where there are two."""
    return f'{name}, ' if evaluation.is_compared else ''


def _after(evaluation: Evaluation) -> str:
    return ' (after)' if evaluation.is_compared else ''


FIGURES: dict[str, Callable[[Evaluation], Figure]] = dict(
    errors=draw_errors, class_ap=draw_class_ap, confusion=draw_confusion, confidence=draw_confidence,
    precision_recall=draw_precision_recall, size_ap=draw_size_ap, overlaps=draw_overlaps, calibration=draw_calibration)
"""Name of a figure -> what draws it."""
