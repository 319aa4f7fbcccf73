"""Which blend of weights to take, by what was measured."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mgdet_plugin.common.errors import UserError

MAIN = 'coco/bbox_mAP'
PICKS = ('mean', 'new')


@dataclass(frozen=True)
class Row:
    """One blend.

    Attributes:
        alpha: Share of the fine-tuned weights.
        new: Metrics and loss terms on the new domain.
        old: The same on the old one, empty where there is none.
        statistics: Running statistics that were estimated for it, by name.
    """
    alpha: float
    new: Mapping[str, float]
    old: Mapping[str, float]
    statistics: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def domain(self, name: str) -> Mapping[str, float]:
        """What was measured on 'new' or 'old'."""
        return self.new if name == 'new' else self.old

    def scores(self, metrics: Sequence[str]) -> list[float]:
        """The main metrics, of the new domain first.

        A metric that is missing is 0: CocoMetric gives none where nothing at all was found. NaN is below everything.
        """
        found = [where.get(name, 0.0) for where, name in zip((self.new, self.old), metrics)]
        return [-math.inf if math.isnan(value) else value for value in found]


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """The shares in rising order.

    Raises:
        UserError: There are none, one is not within [0, 1], or one is given twice.
    """
    for alpha in alphas:
        if not 0 <= alpha <= 1:  # NaN is not, either
            raise UserError(f'--alphas must lie within 0 and 1, got {alpha:g}: 0 is the pretrained, 1 the fine-tuned '
                            'file')
    twice = [alpha for index, alpha in enumerate(alphas) if alpha in alphas[:index]]
    if twice or not alphas:
        raise UserError(f'--alphas names {twice[0]:g} twice; give each share once' if twice else
                        '--alphas is empty; give shares of the fine-tuned weights, such as 0 0.5 1')
    return tuple(sorted(map(float, alphas)))


def check_pick(by: str, keep: float) -> None:
    """Refuse a way to pick that is unknown or a share that is none.

    Raises:
        UserError: With the value seen.
    """
    if by not in PICKS:
        raise UserError(f"--pick must be one of {', '.join(PICKS)}, got '{by}'")
    if not 0 <= keep <= 1:
        raise UserError(f'--keep must lie within 0 and 1, got {keep:g}: it is a share of the old-domain metric')


def main_metric(found: Sequence[Mapping[str, float]]) -> str:
    """Name of the metric a domain is judged by: ``coco/bbox_mAP``, else its first that is a mAP.

    Args:
        found: What was measured there, for each alpha.

    Raises:
        UserError: There is none.
    """
    names = list(dict.fromkeys(name for each in found for name in each))
    chosen = MAIN if MAIN in names else next((name for name in names if 'mAP' in name), None)
    if chosen is None:
        raise UserError(f'the evaluator gives no mAP to pick by, only {", ".join(names) or "nothing"}; CocoMetric '
                        'gives none where no blend finds anything')
    return chosen


def pick(rows: Sequence[Row], metrics: Sequence[str], by: str, keep: float,
         pretrained: Row) -> tuple[int, list[str]]:
    """Index of the blend to take; among equals the one nearest the pretrained weights.

    Args:
        rows: By rising alpha.
        metrics: Main metric of the new domain, and of the old one if there is one.
        by: ``mean`` or ``new``; without an old domain both mean the highest on the new one.
        keep: For ``new``: the share of the pretrained weights' old-domain metric that must be kept.
        pretrained: What was measured of them, whether or not they are one of the rows.

    Returns:
        The index, and lines a person should know.
    """
    scores = [row.scores(metrics) for row in rows]
    notes = [f'alpha {row.alpha:g} finds nothing on the {name} domain: its {metric} counts as 0'
             for row in rows for name, metric in zip(('new', 'old'), metrics) if metric not in row.domain(name)]
    if len(metrics) == 1 or by == 'mean':
        return _best([sum(each) for each in scores]), notes
    needed = keep * pretrained.scores(metrics)[1]
    kept = [score[0] if score[1] >= needed else -math.inf for score in scores]
    if max(kept) > -math.inf:
        return _best(kept), notes
    index = _best([score[1] for score in scores])
    return index, [*notes, f'no blend keeps {keep:g} of the old-domain {metrics[1]} of the pretrained weights, '
                   f'{pretrained.scores(metrics)[1]:.4f}; picked is the highest there, alpha {rows[index].alpha:g}']


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], -index))


def plain(row: Row) -> dict[str, Any]:
    """A row as plain numbers, for a file."""
    return dict(alpha=row.alpha, new=dict(row.new), **(dict(old=dict(row.old)) if row.old else {}))
