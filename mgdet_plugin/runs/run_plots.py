"""Figures of a training run, one function each. Every axis counts epochs, and every stage is shaded."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter

from mgdet_plugin.common.guard_record import OLD, Validation, kept_share
from mgdet_plugin.common.metric_names import at_half
from mgdet_plugin.runs import run_axes as panel
from mgdet_plugin.runs.run import LOSS, Run
from mgdet_plugin.runs.run_axes import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, SMALL, WIDTH
from mgdet_plugin.runs.run_checks import kept

TERM_STYLES = ((RED, 'o'), (BLUE, 's'), (GREEN, '^'), (PINK, 'v'), (ORANGE, 'D'), (SKY, 'P'))
METRIC_STYLES = ((BLUE, 'o'), (GREEN, 's'), (ORANGE, '^'), (PINK, 'v'), (SKY, 'D'))
STRETCH = 5  # a level further away than this is drawn on a logarithmic axis
ROUNDED = 1e-3  # evaluators give three digits
FAR = 200  # and further than this not at all
FEW = 12  # so few values are marked one by one


def draw_figures(run: Run) -> dict[str, Figure]:
    """Name of a figure -> figure, in the order of :data:`FIGURES`; those the run has no data for are left out."""
    drawn = {name: draw(run) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def draw_domains(run: Run) -> Figure | None:
    """Both domains: the mean AP on either, and which share of the loaded weights' own on the old one is left."""
    old = next(iter(run.mean_aps(OLD)), '')
    if not old or not run.validations:
        return None
    figure = panel.new_figure(4.3)
    shares = [each for each in (kept_share(run, each.metrics) for each in run.validations) if each is not None]
    ratios = [1.3, 1.0] if len(shares) == len(run.validations) else [1.0]
    learned, *left = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
    best = kept(run)
    for name, label, color, marker in ((run.metric, 'new images', BLUE, 'o'), (old, 'old domain', ORANGE, 's')):
        epochs, values = _series(run, name, absent=0.0)
        if run.pretrained:
            epochs, values = [0.0, *epochs], [run.pretrained.get(name, 0.0), *values]
            learned.axhline(values[0], color=color, lw=1.3, ls='--', label=f'{label}, loaded weights')
        learned.plot(epochs, values, color=color, marker=marker, ms=4, lw=2, label=f'{label}, {name}', zorder=3)
        _mark_best(learned, best, best.metrics.get(name, 0.0), f'best.pth, epoch {best.epoch:g}')
    _finish_ap(learned, run, 'Both domains', WIDTH * ratios[0] / sum(ratios), 'mean AP')
    for axes in left:
        epochs, _ = _series(run, old)
        axes.plot([0.0, *epochs], [1.0, *shares], color=ORANGE, marker='s', ms=4, lw=2, zorder=3)
        _mark_best(axes, best, kept_share(run, best.metrics) or 0.0, f'best.pth, epoch {best.epoch:g}')
        limits = min(*shares, run.at_least) - 0.03, max(1.0, *shares) + 0.03
        axes.axhspan(limits[0] - 1, run.at_least, color=RED, alpha=0.1, lw=0, label='too little is left')
        axes.axhline(run.at_least, color='#8b1e1e', lw=1.4, label=f'at least {run.at_least * 100:.4g}%')
        axes.set_ylim(limits)
        panel.finish(axes, run, 'What is left of the old domain', WIDTH * ratios[1] / sum(ratios),
                     "share of the loaded weights' AP", events=old)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value * 100:.3g}%'))
    panel.legend_for(figure, figure.axes)
    return figure


def _finish_ap(axes: Axes, run: Run, title: str, width: float, ylabel: str) -> None:
    """Finish a panel of APs, whose axis begins at 0."""
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    panel.finish(axes, run, title, width, ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.3g}' if value > -1e-6 else ''))


def _mark_best(axes: Axes, best: Validation, value: float, label: str) -> None:
    """A star at a figure of the best checkpoint's validation."""
    axes.plot(best.epoch, value, '*', color='black', ms=12, zorder=5, ls='', clip_on=False, label=label)


def draw_losses(run: Run) -> Figure | None:
    """Validation losses: guarded terms over their pretrained values, then each term by itself."""
    names = list(dict.fromkeys(name for each in run.validations for name in each.metrics
                               if name.startswith('val/') and name not in run.silent))
    if not names:
        return None
    names.sort(key=lambda name: name != LOSS)
    judged = run.start == 'full' and bool(run.pretrained)
    figure, grid = _grid(len(names), judged)
    if judged:
        _draw_ratios(run, figure.add_subplot(grid[0, :]), [name.removeprefix('val/') for name in names])
    for index, name in enumerate(names):
        _draw_term(run, figure.add_subplot(grid[judged + index // 3, index % 3]), name)
    panel.legend_for(figure, figure.axes[judged:], grid[-1, 2] if len(names) % 3 else None)
    return figure


def _grid(count: int, above: bool = False) -> tuple[Figure, GridSpec]:
    """A figure with places for panels, three a row, maybe below a row for a wide one."""
    rows = -(-count // 3)
    figure = panel.new_figure(2.7 * rows + 3.2 * above + 0.6)
    return figure, figure.add_gridspec(rows + above, 3, height_ratios=[1.15] * above + [1] * rows)


def _draw_ratios(run: Run, axes: Axes, terms: Sequence[str]) -> None:
    """Loss terms over their pretrained values; the guarded ones must stay below the limit."""
    top = 1 + run.limit
    for term, (color, marker) in zip(sorted(terms, key=lambda term: term not in run.guarded), cycle(TERM_STYLES)):
        guarded = term in run.guarded
        ratios = [1.0, *(run.ratio(term, each) for each in run.validations)]
        axes.plot([0, *(each.epoch for each in run.validations)], ratios, color=color, marker=marker, ms=4.5,
                  lw=2.4 if guarded else 1, alpha=1 if guarded else 0.6, ls='-' if guarded else '--',
                  label=f'{term}{" (guarded)" if guarded else ""}')
    axes.axhspan(1, top, color=ORANGE, alpha=0.16, lw=0, label=f'up to {run.limit:.0%} above pretrained')
    axes.axhline(1, color='black', lw=1)
    axes.axhline(top, color='#8b1e1e', lw=1.4, label=f'limit of guarded losses, {top:g}')
    if axes.get_ylim()[1] > STRETCH:
        panel.log_axis(axes)
    panel.finish(axes, run, 'Loss terms relative to the pretrained weights', WIDTH, 'times pretrained')
    axes.legend(*panel.labels_once([axes]), loc='upper center', bbox_to_anchor=(0.5, -0.17), ncols=5, frameon=False,
                fontsize=SMALL)


def _draw_term(run: Run, axes: Axes, name: str) -> None:
    """One term: its curve, the pretrained level with the band of a guarded one, the random start."""
    term = name.removeprefix('val/')
    before, random = run.pretrained.get(name, math.nan), run.random.get(name, math.nan)
    guarded = term in run.guarded and run.start == 'full'
    epochs, values = _series(run, name)
    if not math.isnan(before):
        epochs, values = [0.0, *epochs], [before, *values]
        axes.axhline(before, color='black', lw=1.2, ls='--', label='pretrained')
        if guarded:
            axes.axhspan(before, before * (1 + run.limit), color=ORANGE, alpha=0.3, lw=0,
                         label=f'up to {run.limit:.0%} above pretrained (guarded losses)')
    axes.plot(epochs, values, color=BLUE, marker='o', ms=3, lw=1.6, label='validation', zorder=3)
    highest = max((value for value in (*values, before) if math.isfinite(value)), default=math.nan)
    title = 'loss, the sum' if name == LOSS else f'{term}, guarded' if guarded else term
    far = math.isfinite(random) and random > FAR * highest
    if math.isfinite(random) and not far:
        axes.axhline(random, color=GREY, lw=1.5, ls=':', label='random start')
    positive = [value for value in (*values, *([] if far else [random])) if value > 0]
    if positive and max(positive) > STRETCH * min(positive):
        panel.log_axis(axes)
    panel.finish(axes, run, title, WIDTH / 3, events='' if name == LOSS else term)
    if far:
        level = f'{random:,.0f}' if random >= 1000 else f'{random:.4g}'
        axes.set_xlabel(f'epochs done (random start {level}, off the axis)', fontsize=SMALL)


def _series(run: Run, name: str, absent: float = math.nan) -> tuple[list[float], list[float]]:
    """Epochs and values of a figure of the validations; what a validation without it counts as."""
    return ([float(each.epoch) for each in run.validations],
            [each.metrics.get(name, absent) for each in run.validations])


def draw_training(run: Run) -> Figure | None:
    """Training losses, raw and smoothed."""
    names = [name for name, values in run.training.items()
             if name == 'loss' or (name.startswith('loss_') and values.any())]
    if not names:
        return None
    epochs = run.epochs_at(run.training['step'])
    figure, grid = _grid(len(names))
    for index, name in enumerate(names):
        axes = figure.add_subplot(grid[index // 3, index % 3])
        values = run.training[name]
        axes.plot(epochs, values, '.-' if len(values) < FEW else '-', color=SKY, lw=0.8, alpha=0.75, label='as logged')
        axes.plot(epochs, smooth(values), color=BLUE, lw=2, label='smoothed')
        usable = values[np.isfinite(values) & (values > 0)]
        if len(usable) and usable.max() > STRETCH * np.median(usable):
            panel.log_axis(axes)
        panel.finish(axes, run, 'loss, the sum' if name == 'loss' else name, WIDTH / 3,
                     events='' if name == 'loss' else name)
    panel.legend_for(figure, figure.axes, grid[-1, 2] if len(names) % 3 else None)
    return figure


def smooth(values: np.ndarray) -> np.ndarray:
    """The running mean of a running median, each over a twentieth of the values: a spike or NaN leaves no trace."""
    half = max(2, len(values) // 40)
    for middle in (np.median, np.mean):
        windows = [values[max(0, at - half):at + half + 1] for at in range(len(values))]
        values = np.array([middle(each[np.isfinite(each)]) if np.isfinite(each).any() else math.nan
                           for each in windows])
    return values


def draw_rates(run: Run) -> Figure | None:
    """The rate of every group of parameters; a frozen group has a gap."""
    names = [name for name in run.training if name.endswith('_lr') and name != 'base_lr'] or [
        name for name in run.training if name == 'lr']
    if not names:
        return None
    figure = panel.new_figure(3.9)
    axes = figure.add_subplot()
    parts = [name.removesuffix('_lr').split('.')[0] for name in names]
    colors = panel.part_colors(parts)
    # The last part is the widest and drawn first, so that equal lines stay visible.
    widths = dict(zip(colors, np.linspace(1.8, 1.8 + 2.2 * min(len(colors) - 1, 3), len(colors))))
    epochs = run.epochs_at(run.training['step'])
    for name, part in zip(names, parts):
        rates = np.where(run.training[name] > 0, run.training[name], math.nan)
        axes.plot(epochs, rates, 'o-' if len(rates) < FEW else '-', ms=5, color=colors[part], lw=widths[part],
                  label=part, solid_capstyle='butt', zorder=3 - widths[part] / 10)
    axes.set_yscale('log')
    panel.finish(axes, run, 'Learning rates (no line: frozen)', WIDTH, 'rate')
    panel.legend_right(axes)
    return figure


def draw_metrics(run: Run) -> Figure | None:
    """The mean AP that counts, that at an overlap of 0.5, and those of further evaluators and of the old domain."""
    given = dict.fromkeys(name for each in run.validations for name in each.metrics)
    half = at_half(run.metric, given)
    if half and all(abs(each.metrics.get(half, 0.0) - each.metrics.get(run.metric, 0.0)) < ROUNDED
                    for each in run.validations):
        half = None  # VOCMetric's mean is over the overlap of 0.5 alone, unless it is given more
    names = [name for name in dict.fromkeys((run.metric, half, *run.mean_aps(), *run.mean_aps(OLD))) if name in given]
    if not names:
        return None
    figure = panel.new_figure(4.1)
    axes = figure.add_subplot()
    for name, (color, marker) in zip(names, cycle(METRIC_STYLES)):
        epochs, values = _series(run, name, absent=0.0)
        if run.pretrained:
            before = run.pretrained.get(name, 0.0)
            epochs, values = [0.0, *epochs], [before, *values]
            axes.axhline(before, color=color, lw=1.3, ls='--')
        axes.plot(epochs, values, color=color, marker=marker, ms=4, lw=1.8, label=name, zorder=3)
        if run.random:
            axes.axhline(run.random.get(name, 0.0), color=color, lw=1.3, ls=':')
        if name == run.metric and run.validations:
            best = kept(run)
            value = best.metrics.get(name, 0.0)
            _mark_best(axes, best, value, f'best, {value:.3f} at epoch {best.epoch:g}')
    if run.pretrained:
        axes.plot([], [], color=GREY, ls='--', label='pretrained (same colour)')
    if run.random:
        axes.plot([], [], color=GREY, ls=':', label='random start (same colour)')
    _finish_ap(axes, run, 'Detection on the validation images', WIDTH, 'AP')
    panel.legend_right(axes)
    return figure


def draw_weights(run: Run) -> Figure | None:
    """How far the weights of every part are from those the run started from."""
    parts = list(dict.fromkeys(name for each in run.validations for name in each.weights))
    if not parts:
        return None
    figure = panel.new_figure(3.7)
    axes = figure.add_subplot()
    values = {part: np.array([each.weights.get(part, math.nan) for each in run.validations]) for part in parts}
    moved = np.concatenate([each[np.isfinite(each) & (each > 0)] for each in values.values()])
    shelf = (moved.min() if len(moved) else 1e-3) / 4  # where what did not move is drawn on the logarithmic axis
    for part, color, marker in zip(parts, panel.part_colors(parts).values(), cycle('osD^v')):
        axes.plot([each.epoch for each in run.validations], np.where(values[part] == 0, shelf, values[part]),
                  color=color, marker=marker, ms=4.5, lw=1.8, label=part)
    panel.log_axis(axes)
    axes.axhline(shelf * 1.6, color=GREY, lw=0.8)
    top = (moved.max() if len(moved) else 1e-2) * 1.8
    axes.set_ylim(shelf / 1.6, top)
    axes.set_yticks([tick for tick in axes.get_yticks() if shelf * 1.6 < tick < top])
    axes.text(-0.008, shelf, 'unchanged', transform=axes.get_yaxis_transform(), ha='right', va='center', fontsize=SMALL)
    panel.finish(axes, run, 'Distance of the weights from the start, relative to their size', WIDTH,
                 'relative distance', events=None)
    panel.legend_right(axes)
    return figure


FIGURES: dict[str, Callable[[Run], Figure | None]] = dict(
    domains=draw_domains, losses=draw_losses, training=draw_training, rates=draw_rates, metrics=draw_metrics,
    weights=draw_weights)
