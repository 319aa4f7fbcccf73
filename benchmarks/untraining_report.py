"""What comparing ways of fine-tuning found: means, who beats whom on both domains, a table, a plot, JSON."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, permutations
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.spread import markdown_table, mean_and_spread, spread_text
from mgdet_plugin.common.records import finite
from mgdet_plugin.runs.run_axes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    SMALL,
    legend_right,
    new_figure,
    plain_axes,
)

STAGED, BLENDED = 'staged', 'staged_blend'
HEADS = dict(new_ap='new AP', new_ap50='new AP50', old_ap='old AP', old_ap50='old AP50', worst_drift='worst drift',
             old_drift='old drift', seconds='seconds')
STYLES = ((BLUE, 'o'), (RED, 's'), (ORANGE, '^'), (GREY, 'v'), (GREEN, 'D'), (PINK, 'X'), (SKY, 'P'))
HEIGHT = 5.6  # inches


class Scores(NamedTuple):
    """AP of weights on the test sets of both domains, from 0 to 1; 0 where nothing is detected."""
    new_ap: float
    new_ap50: float
    old_ap: float
    old_ap50: float


@dataclass(frozen=True)
class Row:
    """What one run reached.

    Attributes:
        way: Name of the way of fine-tuning.
        seed: Of the run.
        scores: Of its best weights.
        worst_drift: Highest ratio of a guarded loss to that of the loaded weights, on validation images of the new
            domain; infinite where a loss was not finite.
        old_drift: The same losses on validation images of the old domain; None where the baseline has none.
        seconds: Training, process start included.
    """
    way: str
    seed: int
    scores: Scores
    worst_drift: float
    old_drift: float | None
    seconds: float


@dataclass(frozen=True)
class BlendPoint:
    """What one blend of a run's weights with the loaded ones reaches.

    Attributes:
        seed: Of the run.
        alpha: Share of the fine-tuned weights.
        scores: Of the blend.
        picked: Whether it is the one that the validation sets picked.
    """
    seed: int
    alpha: float
    scores: Scores
    picked: bool


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        start: Scores of the loaded weights.
        rows: One a run, ways together in the order they are shown.
        blends: Every share of every staged run, by seed and rising share.
        keep: Share of the loaded weights' old-domain AP that a blend was asked to keep.
    """
    start: Scores
    rows: tuple[Row, ...]
    blends: tuple[BlendPoint, ...]
    keep: float

    @property
    def ways(self) -> list[str]:
        """Names of the ways in order."""
        return list(dict.fromkeys(row.way for row in self.rows))

    def of(self, way: str) -> list[Row]:
        """The runs of a way."""
        return [row for row in self.rows if row.way == way]


@dataclass(frozen=True)
class Beaten:
    """A way that has lower mean AP than another on both domains.

    Attributes:
        way: The lower one.
        by: The higher one.
        beyond_spread: Whether on both domains even the best run of the lower is below the worst of the higher.
    """
    way: str
    by: str
    beyond_spread: bool


def flat(entry: Row | BlendPoint) -> dict[str, Any]:
    """Name -> figure of an entry, its scores among them."""
    fields = {name: value for name, value in vars(entry).items() if name != 'scores'}
    return {**fields, **entry.scores._asdict()}


def beaten_ways(comparison: Comparison) -> list[Beaten]:
    """All pairs of ways of which one has strictly lower mean AP on the test sets of both domains."""
    found = []
    for way, by in permutations(comparison.ways, 2):
        pairs = [([getattr(row.scores, name) for row in comparison.of(way)],
                  [getattr(row.scores, name) for row in comparison.of(by)]) for name in ('new_ap', 'old_ap')]
        if all(statistics.fmean(low) < statistics.fmean(high) for low, high in pairs):
            found.append(Beaten(way, by, all(max(low) < min(high) for low, high in pairs)))
    return found


def comparison_text(comparison: Comparison) -> str:
    """A markdown table of means and standard deviations, what was picked, and who beats whom."""
    seeds = sorted({row.seed for row in comparison.rows})
    rows = [['loaded weights', *(f'{value:.3f}' for value in comparison.start), *['-'] * 3]]
    rows += [[way, *(_cell(comparison.of(way), name) for name in HEADS)] for way in comparison.ways]
    lines = [markdown_table(['way', *HEADS.values()], rows)]
    picked = ', '.join(f'{each.alpha:g} (seed {each.seed})' for each in comparison.blends if each.picked)
    lines += ['', f'Test sets, best weights of each run; mean ± standard deviation over seeds '
              f'{", ".join(map(str, seeds))}. Drift is the highest ratio of a guarded loss to that of the loaded '
              'weights over the validations, of a blend that of the blend itself.']
    if picked:
        lines += ['', f'{BLENDED}: alpha {picked}, picked on the validation sets: the highest new AP that keeps '
                  f'{comparison.keep:g} of the old AP of the loaded weights, the highest old AP where none does.']
    return '\n'.join([*lines, '', *verdict(comparison)]) + '\n'


def verdict(comparison: Comparison) -> list[str]:
    """For each staged way a line on what it beats on both domains and what beats it."""
    pairs, lines = beaten_ways(comparison), []
    for own in (STAGED, BLENDED):
        if own in comparison.ways:
            below = [f'{each.way}{_how(each)}' for each in pairs if each.by == own]
            above = [f'{each.by}{_how(each)}' for each in pairs if each.way == own]
            lines.append(f'- {own} has the higher AP on both domains than: {", ".join(below) or "none"}; the lower on '
                         f'both than: {", ".join(above) or "none"}')
    return lines


def _how(pair: Beaten) -> str:
    return ' (every seed)' if pair.beyond_spread else ' (in the mean)'


def _cell(rows: Sequence[Row], figure: str) -> str:
    return spread_text(_values(rows, figure), dict(seconds=0, worst_drift=2, old_drift=2).get(figure, 3))


def _values(rows: Sequence[Row], figure: str) -> list[float | None]:
    return [flat(row)[figure] for row in rows]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """All that was measured, as plain types; a number that is not finite is null."""
    means: dict[str, dict[str, Any]] = {}
    for way in comparison.ways:
        found = {name: mean_and_spread(_values(comparison.of(way), name)) for name in HEADS}
        means[way] = {name: each and dict(mean=each[0], std=each[1]) for name, each in found.items()}
    plain: dict[str, Any] = finite(dict(
        start=comparison.start._asdict(), rows=[flat(row) for row in comparison.rows], means=means,
        blends=[flat(point) for point in comparison.blends], keep=comparison.keep,
        beaten=[asdict(each) for each in beaten_ways(comparison)]))
    return plain


def comparison_figure(comparison: Comparison) -> Figure:
    """AP on the new against AP on the old domain: a small mark a run, a large one a way's mean, blends as a line."""
    figure = new_figure(HEIGHT)
    axes = figure.subplots()
    axes.plot(comparison.start.old_ap, comparison.start.new_ap, '*', color='black', ms=15, ls='', zorder=4,
              label='loaded weights')
    for way, (color, marker) in zip(comparison.ways, cycle(STYLES)):
        rows = comparison.of(way)
        old, new = ([getattr(row.scores, name) for row in rows] for name in ('old_ap', 'new_ap'))
        axes.plot(old, new, marker, color=color, ms=5, alpha=0.55, mew=0, ls='', zorder=3)
        axes.plot(statistics.fmean(old), statistics.fmean(new), marker, color=color, ms=11, mec='black', mew=0.9,
                  ls='', zorder=5, label=way)
    line = blend_line(comparison)
    if line:
        axes.plot(*zip(*line), ':', marker='.', color='black', lw=1.3, ms=6, zorder=2, label=(
            'blends of staged, alpha 0,\n' + ', '.join(f'{alpha:g}' for alpha in _shares(comparison)) + ', 1 (means)'))
    axes.set_title('AP on the test sets of both domains (small: one seed, large: mean)', loc='left', fontsize=10,
                   weight='bold')
    axes.set_xlabel('AP on the old domain: what is kept', fontsize=SMALL)
    axes.set_ylabel('AP on the new domain: what is won', fontsize=SMALL)
    axes.margins(0.06)
    plain_axes(axes)
    legend_right(axes)
    return figure


def blend_line(comparison: Comparison) -> list[tuple[float, float]]:
    """(Old AP, new AP) along the blend: loaded weights, means of each share, mean of the staged runs."""
    if not comparison.blends:
        return []
    parts = [[comparison.start]]
    parts += [[each.scores for each in comparison.blends if each.alpha == alpha] for alpha in _shares(comparison)]
    parts.append([row.scores for row in comparison.of(STAGED)])
    return [(statistics.fmean(each.old_ap for each in part), statistics.fmean(each.new_ap for each in part))
            for part in parts]


def _shares(comparison: Comparison) -> list[float]:
    return sorted({each.alpha for each in comparison.blends})
