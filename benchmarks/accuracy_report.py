"""What the head to head found: means over seeds, whose lead is beyond their spread, tables, JSON."""
from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.spread import markdown_table, spread_text
from mgdet_plugin.common.records import finite

OURS, PEER = 'multigrid', 'yolov3'
HEADS, VARIANTS = 'heads', 'variants'
RECIPE = 'recipe'  # the variant that changes nothing
CONFIGURED = 'as configured'
METRICS = {'AP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50', 'AP75': 'coco/bbox_mAP_75',
           'AP small': 'coco/bbox_mAP_s', 'AP medium': 'coco/bbox_mAP_m', 'AP large': 'coco/bbox_mAP_l'}
"""Name in a report -> key of CocoMetric, whose -1 says that the set has no such objects."""
SCORING_METRICS = ('AP', 'AP50', 'AP75')
ONE_SEED = 'one seed, spread unknown'


@dataclass(frozen=True)
class Run:
    """What one run reached.

    Attributes:
        group: 'heads' or 'variants'.
        data: Name of the data set.
        name: 'multigrid' or 'yolov3', or that of the variant.
        seed: Of the run.
        parameters: Number of weights that are trained.
        curve: Epoch -> metrics on the test set, by the names of :data:`METRICS`.
        seconds: Training, process start included.
    """
    group: str
    data: str
    name: str
    seed: int
    parameters: int
    curve: Mapping[int, Mapping[str, float]]
    seconds: float

    @property
    def last(self) -> Mapping[str, float]:
        """Metrics of the last epoch, the ones that count."""
        return self.curve[max(self.curve)]


@dataclass(frozen=True)
class Score:
    """What the last weights of a run reach with another way to make detections.

    Attributes:
        data: Name of the data set.
        head: 'multigrid' or 'yolov3'.
        name: Of the way.
        seed: Of the run.
        metrics: By the names of :data:`METRICS`.
    """
    data: str
    head: str
    name: str
    seed: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Accuracy:
    """All that was measured.

    Attributes:
        runs: One a run, in the order they are shown, seeds of a case together.
        scores: Ways of scoring, in the order they are shown.
    """
    runs: tuple[Run, ...]
    scores: tuple[Score, ...] = ()

    @property
    def sets(self) -> list[str]:
        """Names of the data sets in order."""
        return list(dict.fromkeys(run.data for run in self.runs))

    def of(self, data: str, name: str, group: str = HEADS) -> list[Run]:
        """The runs of a case."""
        return [run for run in self.runs if (run.group, run.data, run.name) == (group, data, name)]

    def names(self, data: str, group: str) -> list[str]:
        """Names of the cases of a group that have runs."""
        return list(dict.fromkeys(run.name for run in self.runs if (run.group, run.data) == (group, data)))


@dataclass(frozen=True)
class Lead:
    """How far MultiGrid is before the peer on a data set.

    Attributes:
        ap: Difference of the mean AP, above 0 where MultiGrid's is higher.
        ours_worst: Lowest AP of MultiGrid's seeds.
        ours_best: Their highest.
        peer_worst: Lowest AP of the peer's seeds.
        peer_best: Their highest.
        seeds: Runs of the head that has fewer.
        target: Mean AP of the peer's last epoch.
        reached: First measured epoch at which MultiGrid's mean AP is at or above the target; None where none is.
    """
    ap: float
    ours_worst: float
    ours_best: float
    peer_worst: float
    peer_best: float
    seeds: int
    target: float
    reached: int | None

    @property
    def beyond_spread(self) -> bool:
        """Whether MultiGrid's worst seed is above the peer's best, or its best below the peer's worst."""
        return self.seeds > 1 and (self.ours_worst > self.peer_best or self.ours_best < self.peer_worst)


def lead(result: Accuracy, data: str) -> Lead | None:
    """Compare both heads on a data set; None where one of them has no run."""
    ours, peer = (result.of(data, head) for head in (OURS, PEER))
    if not ours or not peer:
        return None
    mine, theirs = ([run.last['AP'] for run in runs] for runs in (ours, peer))
    target = statistics.fmean(theirs)
    return Lead(statistics.fmean(mine) - target, min(mine), max(mine), min(theirs), max(theirs),
                min(len(ours), len(peer)), target, epochs_to_reach(mean_curve(ours), target))


def mean_curve(runs: Sequence[Run]) -> dict[int, float]:
    """Epoch -> mean AP of runs that were measured at the same epochs."""
    return {epoch: statistics.fmean(run.curve[epoch]['AP'] for run in runs) for epoch in runs[0].curve}


def epochs_to_reach(curve: Mapping[int, float], target: float) -> int | None:
    """The first measured epoch at or above a target.

    Args:
        curve: Epoch -> AP.
        target: The AP.
    """
    return next((epoch for epoch in sorted(curve) if curve[epoch] >= target), None)


def paired_difference(values: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """Mean difference over the seeds that both have; None where they share none.

    Args:
        values: Seed -> AP.
        base: Seed -> AP of what it is held against.
    """
    shared = values.keys() & base.keys()
    return statistics.fmean(values[seed] - base[seed] for seed in shared) if shared else None


def accuracy_text(result: Accuracy) -> str:
    """The report in markdown: head to head, variants that were trained, ways of scoring."""
    parts = [_heads_text(result, data) for data in result.sets if result.names(data, HEADS)]
    parts += [_variants_text(result, data) for data in result.sets if result.names(data, VARIANTS)]
    parts += [_scores_text(result, data) for data in dict.fromkeys(score.data for score in result.scores)]
    parts.append('AP of COCO on the test set after the last epoch, weights averaged in training; mean ± standard '
                 'deviation over seeds; - where the set has no such objects. No epoch is chosen by the test set. '
                 'Boxes are held inside their image.')
    return '\n\n'.join(parts) + '\n'


def _heads_text(result: Accuracy, data: str) -> str:
    rows = []
    for head in result.names(data, HEADS):
        runs = result.of(data, head)
        rows.append([head, f'{runs[0].parameters / 1e6:.2f} M', *_cells([run.last for run in runs], METRICS),
                     _seeds(run.seed for run in runs)])
    table = markdown_table(['head', 'parameters', *METRICS, 'seeds'], rows)
    found = lead(result, data)
    return '\n\n'.join([f'## {data}: head to head', table] + ([lead_text(data, result, found)] if found else []))


def lead_text(data: str, result: Accuracy, found: Lead) -> str:
    """One sentence on whose mean is higher, whether beyond the spread, and one on how soon.

    Args:
        data: Name of the data set.
        result: All that was measured.
        found: Of :func:`lead`.
    """
    if found.seeds == 1:
        how = ONE_SEED
    elif found.ours_worst > found.peer_best:
        how = f'beyond the spread: its worst seed {found.ours_worst:.3f}, the best of {PEER} {found.peer_best:.3f}'
    elif found.ours_best < found.peer_worst:
        how = f'beyond the spread: its best seed {found.ours_best:.3f}, the worst of {PEER} {found.peer_worst:.3f}'
    else:
        how = 'within the spread of the seeds'
    epochs = max(result.of(data, OURS)[0].curve)
    target = f'{found.target:.3f}, the mean of {PEER} at the end,'
    when = (f'reaches {target} at epoch {found.reached} of {epochs}' if found.reached
            else f'does not reach {target} in {epochs} epochs')
    return f'{OURS} - {PEER}: {found.ap:+.3f} AP ({how}). The mean of {OURS} {when}.'


def _variants_text(result: Accuracy, data: str) -> str:
    base = {run.seed: run.last['AP'] for run in result.of(data, RECIPE, VARIANTS)}
    rows = []
    for name in result.names(data, VARIANTS):
        runs = result.of(data, name, VARIANTS)
        rows.append([name, *_cells([run.last for run in runs], METRICS),
                     '-' if name == RECIPE else _signed(paired_difference(
                         {run.seed: run.last['AP'] for run in runs}, base)),
                     _seeds(run.seed for run in runs)])
    table = markdown_table(['variant, trained', *METRICS, f'AP to {RECIPE}', 'seeds'], rows)
    epochs = max(epoch for run in result.runs if run.group == VARIANTS for epoch in run.curve)
    return (f'## {data}: what parts of the recipe are worth\n\n{table}\n\nRuns of {epochs} epochs; differences are '
            'over seeds that both have.')


def _scores_text(result: Accuracy, data: str) -> str:
    groups: dict[tuple[str, str], list[Score]] = {}
    for score in result.scores:
        if score.data == data:
            groups.setdefault((score.head, score.name), []).append(score)
    rows = []
    for (head, name), scores in groups.items():
        base = {each.seed: each.metrics['AP'] for each in groups.get((head, CONFIGURED), [])}
        change = paired_difference({each.seed: each.metrics['AP'] for each in scores}, base)
        rows.append([f'{head}: {name}', *_cells([each.metrics for each in scores], SCORING_METRICS),
                     '-' if name == CONFIGURED else _signed(change), _seeds(each.seed for each in scores)])
    table = markdown_table(['scoring, not trained', *SCORING_METRICS, f'AP to {CONFIGURED}', 'seeds'], rows)
    return f'## {data}: the same weights, detections made in other ways\n\n{table}'


def _cells(found: Sequence[Mapping[str, float]], names: Iterable[str]) -> list[str]:
    return [spread_text((each[name] for each in found), 3) for name in names]


def _signed(value: float | None) -> str:
    return '-' if value is None else f'{value:+.3f}'


def _seeds(seeds: Iterable[int]) -> str:
    return ', '.join(map(str, seeds))


def accuracy_json(result: Accuracy) -> dict[str, Any]:
    """All that was measured, as plain types; a number that is not finite is null."""
    leads = {data: lead(result, data) for data in result.sets}
    plain: dict[str, Any] = finite(dict(
        runs=[{**asdict(run), 'curve': {str(epoch): dict(metrics) for epoch, metrics in run.curve.items()}}
              for run in result.runs],
        scores=[asdict(score) for score in result.scores],
        leads={data: {**asdict(found), 'beyond_spread': found.beyond_spread}
               for data, found in leads.items() if found}))
    return plain
