"""Every number of an evaluation as tables: what is written as JSON and CSV, and what pages and figures read."""
from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mgdet_plugin.common.records import finite
from mgdet_plugin.runs.analysis.analysis import OVERLAPS, Analysis, mean
from mgdet_plugin.runs.analysis.average_precision import GRID, RECALLS, Confidence
from mgdet_plugin.runs.analysis.calibration import BINS, OVERLAP_EDGES
from mgdet_plugin.runs.analysis.error_kinds import KINDS, MISSED
from mgdet_plugin.runs.analysis.picture_errors import picture_errors

BEFORE, AFTER = 'before', 'after'
ALL = 'all classes'
DRAWN_OVERLAPS = (0, 5, 8)  # places of 0.5, 0.75 and 0.9
Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What weights reach on sets.

    Attributes:
        title: Name of the config.
        domains: Name of a set -> ``before`` and ``after``, or ``after`` alone -> what is measured.
        sources: ``before``, ``after`` and names of sets -> where they come from, for a person.
    """
    title: str
    domains: dict[str, dict[str, Analysis]]
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def is_compared(self) -> bool:
        """Whether there are weights before."""
        return any(BEFORE in each for each in self.domains.values())


def summary(one: Analysis) -> Iterable[Row]:
    """One row."""
    average, positives = one.curves.average, int(one.matched.positives.sum())
    precision, recall, f1 = one.overall.best
    yield dict(
        images=len(one.results), objects=positives, detections=int((~one.matched.skipped[0]).sum()), AP=one.mean_ap,
        AP50=mean(average[0]), AP75=mean(average[5]), **{f'AP_{name}': mean(each) for name, each in one.sizes.items()},
        AR100=mean(one.curves.recall), best_f1=f1, threshold=one.overall.threshold, precision=precision, recall=recall,
        mean_overlap=mean(one.overlaps[one.overlaps >= OVERLAPS[0]]), calibration_error=one.calibration.error,
        confident_calibration_error=one.calibration.confident_error)


def by_class(one: Analysis) -> Iterable[Row]:
    """A row a class."""
    for label, name in enumerate(one.classes):
        average, at_best = one.curves.average[:, label], one.by_class[label]
        yield dict(
            {'class': name}, objects=int(one.matched.positives[label]), AP=mean(average), AP50=float(average[0]),
            AP75=float(average[5]), **{f'AP_{size}': mean(each[:, label]) for size, each in one.sizes.items()},
            best_f1=at_best.best[2], threshold=at_best.threshold, precision=at_best.best[0], recall=at_best.best[1])


def precision_recall(one: Analysis) -> Iterable[Row]:
    """Precision at each recall, of the overlaps that are drawn: of each class, and the mean of those with objects."""
    for level in DRAWN_OVERLAPS:
        curves = one.curves.precision[level]
        known = curves[:, ~np.isnan(curves[0])]
        named = [(ALL, known.mean(axis=1) if known.size else curves[:, 0]), *zip(one.classes, curves.T)]
        yield from ({'class': name, 'overlap': float(OVERLAPS[level].round(2)), 'recall': float(recall.round(2)),
                     'precision': float(value)} for name, curve in named for recall, value in zip(RECALLS, curve))


def confidences(one: Analysis) -> Iterable[Row]:
    """Precision, recall and F1 of what has at least a score."""
    def rows(name: str, each: Confidence) -> Iterable[Row]:
        return ({'class': name, 'score': float(score.round(2)), 'precision': float(precision), 'recall': float(recall),
                 'f1': float(f1)} for score, precision, recall, f1 in zip(GRID, each.precision, each.recall, each.f1))

    for name, each in ((ALL, one.overall), *zip(one.classes, one.by_class)):
        yield from rows(name, each)


def confusions(one: Analysis) -> Iterable[Row]:
    """A row a pair of classes that is not 0; 'nothing' stands for no object and for no detection."""
    names = [*one.classes, 'nothing']
    yield from (dict(object=names[truth], detection=names[found], count=int(one.confusion[truth, found]),
                     threshold=one.threshold) for truth, found in zip(*np.nonzero(one.confusion)))


def overlaps(one: Analysis) -> Iterable[Row]:
    """Detections by the overlap with their object."""
    counts, edges = np.histogram(one.overlaps, OVERLAP_EDGES)
    yield from ({'from': float(low.round(2)), 'to': float(high.round(2)), 'detections': int(count)}
                for low, high, count in zip(edges[:-1], edges[1:], counts))


def errors(one: Analysis) -> Iterable[Row]:
    """A row a kind of error: how many in all and at the threshold, and the AP that mending them alone gains."""
    shown, kinds = one.counts(), one.errors.kind
    yield from (dict(kind=kind, count=len(one.errors.missed) if kind == MISSED else int((kinds == kind).sum()),
                     at_threshold=shown[kind], AP50_gained=one.errors.gained[kind]) for kind in KINDS)


def calibrations(one: Analysis) -> Iterable[Row]:
    """A row a bin of scores."""
    found = one.calibration
    yield from ({'from': place / BINS, 'to': (place + 1) / BINS, 'detections': int(count), 'mean_score': float(score),
                 'precision': float(precision)} for place, (count, score, precision) in enumerate(
                     zip(found.counts, found.score, found.precision)))


def pictures(one: Analysis) -> Iterable[Row]:
    """A row a picture: what is right and wrong on it at the threshold."""
    for each, result in zip(picture_errors(one), one.results):
        yield dict(image=result.image, path=result.path, objects=int((~result.crowd).sum()), right=len(each.right),
                   wrong=len(each.wrong), missed=len(each.missed))


TABLES: dict[str, Callable[[Analysis], Iterable[Row]]] = dict(
    summary=summary, classes=by_class, errors=errors, confusion=confusions, precision_recall=precision_recall,
    confidence=confidences, overlaps=overlaps, calibration=calibrations, pictures=pictures)
"""Name of a table -> its rows."""


def tables(evaluation: Evaluation) -> dict[str, list[Row]]:
    """Name of a table -> its rows, each with its set and weights; NaN is None."""
    return {name: [finite(dict(domain=domain, weights=weights) | row)
                   for domain, measured in evaluation.domains.items() for weights, one in measured.items()
                   for row in table(one)] for name, table in TABLES.items()}


def as_csv(rows: list[Row]) -> str:
    """A table as CSV; what is None is empty."""
    stream = io.StringIO(newline='')
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ['domain'])
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
