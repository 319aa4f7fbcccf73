"""Blends of fine-tuned with pretrained weights, measured on the new and the old domain, and the one to take.

Alpha 0 and 1 are the given files bit for bit. In between the running statistics of batch normalisation are estimated
anew: those of a blend are not the blend of statistics. Over images of the new domain alone they serve that one; what
the old one keeps shows with images of both.

Neither torch nor mmdet is imported before files and options are known to be there and within their range.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.metric_names import mean_aps
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.keep.blending import ALPHAS, blend_states, check_alphas

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = 64
PICKS = ('mean', 'new')
STATISTICS = ('new', 'both', 'blended')


@dataclass(frozen=True)
class BlendRow:
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


@dataclass(frozen=True)
class Pair:
    """The two ends of a blend: paths and tensors of the pretrained and the fine-tuned weights.

    ``content`` is all that the fine-tuned file holds.
    """
    paths: tuple[str, str]
    states: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = field(repr=False)
    content: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Blend:
    """What was measured.

    Attributes:
        pair: The two ends.
        rows: One an alpha, from 0 up.
        metrics: Name of the main metric of the new domain, and of the old one if there is one.
        picked: Index of the row that was picked.
        by: How.
        keep: Share of the pretrained weights' old-domain metric that ``by='new'`` asks for.
        statistics: From what running statistics follow: ``new``, ``both`` or ``blended``.
        notes: What a person should know, one line each.
    """
    pair: Pair
    rows: tuple[BlendRow, ...]
    metrics: tuple[str, ...]
    picked: int
    by: str
    keep: float
    statistics: str
    notes: tuple[str, ...]

    def state(self, index: int | None = None) -> dict[str, Tensor]:
        """The tensors of the blend of a row, its statistics included; by default of the picked one."""
        row = self.rows[self.picked if index is None else index]
        return {**blend_states(*self.pair.states, row.alpha), **row.statistics}


def blend_weights(pretrained: str, finetuned: str, alphas: Sequence[float] = ALPHAS, config: str | None = None,
                  images: int = IMAGES, by: str = 'mean', keep: float = 0.95, statistics: str | None = None,
                  device: str | None = None, cfg_options: Mapping[str, Any] | None = None,
                  progress: Callable[[str], object] = str) -> Blend:
    """Measure blends and pick one.

    Args:
        pretrained: Path of the weights before fine-tuning, with the classes of those after it (a run's ``start.pth``).
        finetuned: Path of the weights after it.
        alphas: Shares of the fine-tuned weights.
        config: Path of the config; its validation set is the new domain, ``val_cfg.others.old`` the old one. Default:
            the one mmengine wrote beside ``finetuned``.
        images: Training images to estimate statistics from, evenly spread, with the pipeline of validation.
        by: ``mean`` (highest mean of both domains' main metrics) or ``new`` (highest on the new domain of those that
            keep enough of the old one).
        keep: How much is enough: that share of the pretrained weights' old-domain metric.
        statistics: From what running statistics follow: ``new`` (training images), ``both`` (those, and as many of the
            old domain's validation images, without their boxes; weighted alpha to 1 - alpha) or ``blended`` like
            weights. Default: ``both`` where the config follows an old domain, else ``new``.
        device: Torch device. Default: a GPU if there is one.
        cfg_options: Dotted keys of the config to set.
        progress: Called with a line for each alpha that is done.

    Raises:
        UserError: Files, config or data are missing or do not fit, or an option is out of its range.
    """
    points = check_alphas(alphas)
    _check_choices(by, keep, statistics)
    config = _config_of(config, pretrained, finetuned)
    from mgdet_plugin.runs.blend_measuring import Blender
    blender = Blender(pretrained, finetuned, config, cfg_options, points, statistics, images, device)
    rows = []
    for alpha in points:
        rows.append(blender.row(alpha))
        progress(f'alpha {alpha:g} is measured ({len(rows)} of {len(points)})')
    compared = by == 'new' and points[0] > 0 and 'old' in blender.domains
    first = blender.row(0.0, ['old']) if compared else rows[0]
    metrics = tuple(main_metric([row.domain(name) for row in rows], blender.mean_aps(name)) for name in blender.domains)
    picked, said = pick(rows, metrics, by, keep, first)
    return Blend(blender.pair, tuple(rows), metrics, picked, by, keep, blender.statistics, (*blender.notes, *said))


def _check_choices(by: str, keep: float, statistics: str | None) -> None:
    """Refuse an unknown way to pick or to estimate statistics, or a share that is none."""
    if by not in PICKS:
        raise UserError(f"--pick must be one of {', '.join(PICKS)}, got '{by}'")
    if not 0 <= keep <= 1:
        raise UserError(f'--keep must lie within 0 and 1, got {keep:g}: it is a share of the old-domain metric')
    if statistics is not None and statistics not in STATISTICS:
        raise UserError(f"--statistics must be one of {', '.join(STATISTICS)}, got '{statistics}'")


def _config_of(config: str | None, pretrained: str, finetuned: str) -> str:
    """The config given, or the only one in the fine-tuned file's folder; weights and config are there."""
    config = config and str(config_path(config))
    for path in (pretrained, finetuned):
        if not Path(path).is_file():
            raise UserError(f'the weights {path} are not there; give the files before and after fine-tuning')
        check_weights_path(path, config or 'CFG')
    if config is None:
        folder = Path(finetuned).parent
        found = sorted(map(str, folder.glob('*.py')))
        if len(found) != 1:
            raise UserError(f'{folder} holds {len(found)} configs, so it does not say which model and data '
                            f'{finetuned} is of; name it: --config CFG')
        config, = found
    return config


def main_metric(found: Sequence[Mapping[str, float]], expected: Sequence[str] = ()) -> str:
    """Name of the metric a domain is judged by, of all measured there: the first mean AP, of those ``expected`` if any.

    Raises:
        UserError: There is none.
    """
    names = list(dict.fromkeys(name for each in found for name in each))
    chosen = next((name for name in (*expected, *mean_aps(names)) if name in names), None)
    if chosen is None:
        raise UserError(f'the evaluator gives no mAP to pick by, only {", ".join(names) or "nothing"}; CocoMetric '
                        'gives none where no blend finds anything')
    return chosen


def pick(rows: Sequence[BlendRow], metrics: Sequence[str], by: str, keep: float,
         pretrained: BlendRow) -> tuple[int, list[str]]:
    """Index of the blend to take (among equals the one nearest the pretrained weights), and lines a person should know.

    Args:
        rows: By rising alpha.
        metrics: Main metric of the new domain, and of the old one if there is one.
        by: ``mean`` or ``new``; without an old domain both mean the highest on the new one.
        keep: For ``new``: the share of the pretrained weights' old-domain metric that must be kept.
        pretrained: What was measured of them, whether or not they are one of the rows.
    """
    scores = [row.scores(metrics) for row in rows]
    notes = [f'alpha {row.alpha:g} finds nothing on the {name} domain: its {metric} counts as 0'
             for row in rows for name, metric in zip(('new', 'old'), metrics) if metric not in row.domain(name)]
    if len(metrics) == 1 or by == 'mean':
        means = [sum(each) for each in scores]
        return means.index(max(means)), notes
    needed = keep * pretrained.scores(metrics)[1]
    kept = [score[0] if score[1] >= needed else -math.inf for score in scores]
    if max(kept) > -math.inf:
        return kept.index(max(kept)), notes
    index = max(range(len(rows)), key=lambda each: scores[each][1])
    return index, [*notes, f'no blend keeps {keep:g} of the old-domain {metrics[1]} of the pretrained weights, '
                   f'{pretrained.scores(metrics)[1]:.4f}; picked is the highest there, alpha {rows[index].alpha:g}']
