"""Blends of fine-tuned with pretrained weights, measured on the new and the old domain (WiSE-FT, arXiv 2109.01903).

A blend is w = (1 - alpha) * pretrained + alpha * finetuned. Alpha 0 and 1 are the given files bit for bit. In between
the running statistics of batch normalisation are estimated anew: those of a blend are not the blend of statistics. Over
images of the new domain alone they serve that one; what the old one keeps shows with images of both.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.engine.checkpoint_check import check_fit, compare_anchors, compare_classes, read_weights
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.keep.batch_statistics import estimate_statistics, norm_layers
from mgdet_plugin.runs.blend_data import (
    build_domain,
    check_data,
    domain_cfgs,
    quiet,
    statistics_batches,
)
from mgdet_plugin.runs.blend_pick import Row, check_alphas, check_pick, main_metric, pick

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
IMAGES = 64
_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


@dataclass(frozen=True)
class Pair:
    """The two ends of a blend.

    Attributes:
        paths: Of the pretrained and the fine-tuned weights.
        states: Their tensors by name.
        content: All that the fine-tuned file holds.
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
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    picked: int
    by: str
    keep: float
    statistics: str
    notes: tuple[str, ...]

    def state(self) -> dict[str, Tensor]:
        """The tensors of the picked blend, its statistics included."""
        row = self.rows[self.picked]
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
    cfg = read_config(config, finetuned, pretrained, cfg_options)
    domains = domain_cfgs(cfg)
    statistics = statistics or ('both' if 'old' in domains else 'new')
    check_pick(by, keep)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ensure_embedded_data(cfg)
    check_data(cfg, domains)
    pair, notes = read_pair(pretrained, finetuned, cfg)
    inner = any(0 < alpha < 1 for alpha in points)
    with quiet():
        model = MODELS.build(cfg.model).to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        check_fit(finetuned, pair.states[1], model.state_dict(), cfg)
        batches = statistics_batches(cfg, domains, statistics, images) if inner else []
        built = {name: build_domain(**each) for name, each in domains.items()}
    if 'old' not in domains:
        notes.append('only the new domain is measured: the config follows no old one (val_cfg.others.old)')
    rows, first = _measure_all(model, pair, points, batches, built, progress, compared=by == 'new')
    metrics = tuple(main_metric([row.domain(name) for row in rows]) for name in domains)
    picked, said = pick(rows, metrics, by, keep, first)
    return Blend(pair, rows, metrics, picked, by, keep, statistics, (*notes, *said))


def _measure_all(model: nn.Module, pair: Pair, points: Sequence[float], batches: Sequence[DataLoader],
                 domains: Mapping[str, tuple[DataLoader, Evaluator]],
                 progress: Callable[[str], object], compared: bool) -> tuple[tuple[Row, ...], Row]:
    """A row for each share, and that of the pretrained weights: where 0 is no share, of the old domain alone."""
    rows = []
    for alpha in points:
        rows.append(measure_blend(model, pair, alpha, batches, domains))
        progress(f'alpha {alpha:g} is measured ({len(rows)} of {len(points)})')
    if points[0] == 0 or 'old' not in domains or not compared:
        return tuple(rows), rows[0]
    return tuple(rows), measure_blend(model, pair, 0.0, [], dict(old=domains['old']))


def blend_states(pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * pretrained + alpha * finetuned of floating tensors; others are the fine-tuned ones.

    In float64, rounded once: what is equal in both stays so bit for bit. Alpha 0 and 1 give the tensors themselves.
    """
    if alpha in (0, 1):
        return dict(finetuned if alpha else pretrained)
    return {key: torch.lerp(pretrained[key].double(), value.double(), alpha).to(value.dtype)
            if value.is_floating_point() else value for key, value in finetuned.items()}


def measure_blend(model: nn.Module, pair: Pair, alpha: float, batches: Sequence[DataLoader],
                  domains: Mapping[str, tuple[DataLoader, Evaluator]]) -> Row:
    """Put a blend into the model, estimate its statistics and measure it.

    Args:
        model: Of the config.
        pair: The two ends.
        alpha: Share of the fine-tuned one.
        batches: Of :func:`statistics_batches`: without any, statistics are blended too; not used at the ends.
        domains: 'new' and maybe 'old' -> dataloader and evaluator.
    """
    model.load_state_dict(blend_states(*pair.states, alpha), strict=True)
    statistics: dict[str, Tensor] = {}
    layers = changed_norms(model, pair)
    with quiet():
        if 0 < alpha < 1 and layers and batches:
            statistics = estimated(model, batches, layers, alpha)
            model.load_state_dict(statistics, strict=False)
        found = {name: {key: float(value) for key, value in measure(model, *each).items()}
                 for name, each in domains.items()}
    return Row(alpha, found.get('new', {}), found.get('old', {}), statistics)


def estimated(model: nn.Module, batches: Sequence[DataLoader], layers: Sequence[str],
              alpha: float) -> dict[str, Tensor]:
    """Statistics of layers over images of the new domain; with images of the old one, both in shares of the blend."""
    found = []
    for each in batches:
        estimate_statistics(model, each, layers=layers)
        found.append({key: value.detach().cpu().clone() for key, value in model.state_dict().items()
                      if key.rpartition('.')[0] in layers and key.rpartition('.')[2] in _BUFFERS})
    return blend_states(found[-1], found[0], alpha)


def changed_norms(model: nn.Module, pair: Pair) -> list[str]:
    """Batch normalisation whose statistics differ between the two ends.

    Others were held while fine-tuning: they compute with the same statistics at both ends, and so in between.
    """
    one, other = pair.states
    return [name for name in norm_layers(model)
            if any(not torch.equal(one[f'{name}.{key}'], other[f'{name}.{key}']) for key in _BUFFERS[:2])]


def read_pair(pretrained: str, finetuned: str, cfg: Config) -> tuple[Pair, list[str]]:
    """Read both files and hold them against each other and the config.

    Returns:
        The pair, and what a person should know about it.

    Raises:
        UserError: A file is missing or no checkpoint, or they are of different models or classes.
    """
    read = [read_weights(path, cfg) for path in (pretrained, finetuned)]
    (one, before), (other, after) = read
    rows = [key for key in other if '.predict_convs.' in key and key in one and one[key].shape != other[key].shape]
    differing = [key for key in {**one, **other} if key not in one or key not in other
                 or one[key].shape != other[key].shape]
    if rows and len(rows) == len(differing):
        raise UserError(f'{pretrained} and {finetuned} have prediction rows of different class counts '
                        f'({one[rows[0]].shape[0]} and {other[rows[0]].shape[0]} rows in {rows[0]}); give the weights '
                        'the fine-tuning started from, with its classes: its start.pth, or its load_from')
    if differing:
        raise UserError(f'{pretrained} and {finetuned} are of different models: {len(differing)} tensors are missing '
                        f'in one or of another shape ({", ".join(differing[:3])}); give the weights before and after '
                        'one fine-tuning')
    notes = [line for path, content in ((pretrained, before), (finetuned, after))
             for line in _compare_meta(path, content, cfg)]
    return Pair((pretrained, finetuned), (one, other), after), notes


def _compare_meta(path: str, content: Mapping[str, Any], cfg: Config) -> list[str]:
    """Lines about class names and anchors stored with weights that are not the config's."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    return compare_classes(path, meta, cfg, 'val') + compare_anchors(path, meta, cfg)


def read_config(config: str | None, finetuned: str, pretrained: str, options: Mapping[str, Any] | None) -> Config:
    """The config given, or the only one in the fine-tuned file's folder.

    Raises:
        UserError: A file is missing, or there is not one config but none or several.
    """
    for path in (pretrained, finetuned):
        if not Path(path).exists():
            raise UserError(f'the weights {path} are not there; give the files before and after fine-tuning')
    if config is None:
        folder = Path(finetuned).parent
        found = sorted(folder.glob('*.py'))
        if len(found) != 1:
            raise UserError(f'{folder} holds {len(found)} configs, so it does not say which model and data '
                            f'{finetuned} is of; name it: --config CFG')
        config = str(found[0])
    if not Path(config).is_file():
        raise UserError(f'the config {config} is not there; configs lie in configs/ and in the folders of runs')
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(options or {}))
    return cfg
