"""What comparing ways of fine-tuning found: means, who beats whom on both domains, a table, JSON."""
from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, NamedTuple

from benchmarks.spread import markdown_table, mean_and_spread, spread_text
from benchmarks.untraining_ways import ALL, BLENDS, RECOMMENDED, STAGED
from mgdet_plugin.common.records import finite

HEADS = dict(new_ap='new AP', new_ap50='new AP50', old_ap='old AP', old_ap50='old AP50', kept='K', won='N', both='H',
             worst_drift='worst drift', old_drift='old drift', seconds='seconds')
DIGITS = dict(seconds=0, worst_drift=2, old_drift=2)  # behind the point; else 3


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

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Row:
        """The row whose figures :func:`flat` gave."""
        return cls(**_with_scores(plain))


@dataclass(frozen=True)
class BlendPoint:
    """What one blend of a run's weights with the loaded ones reaches.

    Attributes:
        way: Of the run.
        seed: Of the run.
        alpha: Share of the fine-tuned weights.
        scores: Of the blend.
        picked: Whether it is the one that the validation sets picked.
    """
    way: str
    seed: int
    alpha: float
    scores: Scores
    picked: bool

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> BlendPoint:
        """The blend whose figures :func:`flat` gave."""
        return cls(**_with_scores(plain))


@dataclass(frozen=True)
class Comparison:
    """All that was measured.

    Attributes:
        start: Scores of the loaded weights.
        rows: One a run, ways together in the order they are shown.
        blends: Every share of every run that is blended, by way, seed and rising share.
        keep: Share of the loaded weights' old-domain AP that a blend of a staged run was asked to keep.
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

    def values(self, way: str, figure: str) -> list[float | None]:
        """A figure of each run of a way, by its name in :data:`HEADS`; None where it was not measured.

        'kept' is the share of the loaded weights' AP on the old domain that is left, 'won' the AP on the new one as a
        share of what everything free at 1e-3 wins without old images, 'both' their harmonic mean.
        """
        return [{**flat(row), **self._shares(row)}[figure] for row in self.of(way)]

    def _shares(self, row: Row) -> dict[str, float | None]:
        best = [each.scores.new_ap for each in self.of(ALL)]
        kept = row.scores.old_ap / self.start.old_ap if self.start.old_ap else None
        won = row.scores.new_ap / statistics.fmean(best) if best and any(best) else None
        if kept is None or won is None:
            return dict(kept=kept, won=won, both=None)
        return dict(kept=kept, won=won, both=statistics.harmonic_mean((kept, won)))


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
    rows = [['loaded weights', '-', *(f'{value:.3f}' for value in comparison.start), *['-'] * 6]]
    rows += [[way, str(len(comparison.of(way))), *(spread_text(comparison.values(way, name), DIGITS.get(name, 3))
                                                   for name in HEADS)] for way in comparison.ways]
    lines = [markdown_table(['way', 'runs', *HEADS.values()], rows)]
    lines += ['', 'Test sets, best weights of each run; mean ± standard deviation over the seeds. K: old AP / that of '
              f'the loaded weights; N: new AP / that of {ALL}; H: their harmonic mean. Drift is the highest ratio of a '
              'guarded loss to that of the loaded weights over the validations, of a blend that of the blend itself.']
    for way, name in BLENDS.items():
        picked = ', '.join(f'{each.alpha:g} (seed {each.seed})' for each in comparison.blends
                           if each.picked and each.way == way)
        if picked:
            how = (f'the highest new AP that keeps {comparison.keep:g} of the old AP of the loaded weights, the '
                   'highest old AP where none does' if way == STAGED else 'the highest mean of both APs')
            lines += ['', f'{name}: alpha {picked}, picked on the validation sets: {how}.']
    return '\n'.join([*lines, '', *verdict(comparison)]) + '\n'


def verdict(comparison: Comparison) -> list[str]:
    """A line each on what the staged ways and the recommended one beat on both domains, and what beats them.

    Of the recommended one also what is higher on either domain alone.
    """
    pairs, lines = beaten_ways(comparison), []
    for own in (STAGED, BLENDS[STAGED], RECOMMENDED):
        if own in comparison.ways:
            below = [f'{each.way}{_how(each)}' for each in pairs if each.by == own]
            above = [f'{each.by}{_how(each)}' for each in pairs if each.way == own]
            lines.append(f'- {own} has the higher AP on both domains than: {", ".join(below) or "none"}; the lower on '
                         f'both than: {", ".join(above) or "none"}')
    if RECOMMENDED in comparison.ways:
        higher = (f'{HEADS[name]}: ' + (', '.join(_higher(comparison, name)) or 'none')
                  for name in ('new_ap', 'old_ap'))
        lines.append(f'- higher than {RECOMMENDED} on one domain: {"; ".join(higher)}')
    return lines


def _higher(comparison: Comparison, figure: str) -> list[str]:
    """Ways with a higher mean than the recommended one."""
    means = {way: statistics.fmean(getattr(row.scores, figure) for row in comparison.of(way))
             for way in comparison.ways}
    return [f'{way} ({mean:.3f})' for way, mean in means.items() if mean > means[RECOMMENDED]]


def _how(pair: Beaten) -> str:
    return ' (every seed)' if pair.beyond_spread else ' (in the mean)'


def _with_scores(plain: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(plain)
    return dict(scores=Scores(*(fields.pop(name) for name in Scores._fields)), **fields)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """All that was measured, as plain types; a number that is not finite is null."""
    means: dict[str, dict[str, Any]] = {}
    for way in comparison.ways:
        found = {name: mean_and_spread(comparison.values(way, name)) for name in HEADS}
        means[way] = {name: each and dict(mean=each[0], std=each[1]) for name, each in found.items()}
    plain: dict[str, Any] = finite(dict(
        start=comparison.start._asdict(), rows=[flat(row) for row in comparison.rows], means=means,
        blends=[flat(point) for point in comparison.blends], keep=comparison.keep,
        beaten=[asdict(each) for each in beaten_ways(comparison)]))
    return plain
