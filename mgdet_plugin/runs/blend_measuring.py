"""Blends put into a model, their running statistics estimated, and measured on the sets of both domains."""
from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import check_datasets, iter_dataset_cfgs
from mgdet_plugin.engine.checkpoint_check import check_same_tensors, compare_anchors, compare_classes, read_weights
from mgdet_plugin.engine.loops.loss_val_loop import check_other
from mgdet_plugin.guard.baselines import evenly
from mgdet_plugin.keep.batch_statistics import estimate_statistics, norm_layers
from mgdet_plugin.keep.blending import blend_states
from mgdet_plugin.runs.blends import BlendRow, Pair
from mgdet_plugin.runs.held_out import HeldOut, prepare_data, quiet

_BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


class Blender:
    """Measures blends of two files of weights.

    Args:
        pretrained: As of :func:`~mgdet_plugin.runs.blends.blend_weights`, like all but:
        config: Path of the config.
        points: The shares to measure; statistics are estimated where one lies in between.

    Raises:
        UserError: Files or data are missing or do not fit, or there is no old domain to estimate statistics from.

    Attributes:
        pair: The two ends.
        domains: 'new' and, if the config follows it, 'old'.
        statistics: Which were taken.
        notes: What a person should know.
    """

    def __init__(self, pretrained: str, finetuned: str, config: str, cfg_options: Mapping[str, Any] | None,
                 points: Sequence[float], statistics: str | None, images: int, device: str | None) -> None:
        cfg = Config.fromfile(config)
        cfg.merge_from_dict(dict(cfg_options or {}))
        sets = _sets(cfg)
        self.domains = list(sets)
        self.statistics = statistics or ('both' if 'old' in sets else 'new')
        prepare_data(cfg, 'train', 'val')
        if 'old' in sets:
            _check_old(cfg, sets['old'])
        self.pair, self.notes = read_pair(pretrained, finetuned, cfg)
        self._tests = HeldOut(cfg, sets, device)
        check_same_tensors(finetuned, self.pair.states[1], self._tests.model.state_dict(), cfg)
        inner = any(0 < alpha < 1 for alpha in points)
        self._batches = self._statistics_batches(cfg, sets.get('old'), images) if inner else []
        if 'old' not in sets:
            self.notes.append('only the new domain is measured: the config follows no old one (val_cfg.others.old)')

    def mean_aps(self, domain: str) -> list[str]:
        """Names of the mean APs that a domain's evaluator gives, as far as they are known."""
        return self._tests.mean_aps(domain)

    def row(self, alpha: float, only: Collection[str] = ()) -> BlendRow:
        """Put the blend of a share into the model, estimate its statistics and measure it, maybe on some domains."""
        state, statistics = blend_states(*self.pair.states, alpha), {}
        layers = self._changed_norms()
        if 0 < alpha < 1 and layers and self._batches:
            self._tests.model.load_state_dict(state, strict=True)
            statistics = self._estimated(layers, alpha)
        found = self._tests.measure({**state, **statistics}, only)
        return BlendRow(alpha, found.get('new', {}), found.get('old', {}), statistics)

    def _statistics_batches(self, cfg: Config, old: Mapping[str, Any] | None, images: int) -> list[DataLoader]:
        """What the statistics of blends are estimated from; they are blended like weights where that is nothing."""
        if self.statistics == 'both' and old is None:
            raise UserError('--statistics both needs images of the old domain; set val_cfg.others.old in the config, '
                            'or take --statistics new')
        if self.statistics == 'blended':
            return []
        found = [spread_batches(cfg.train_dataloader, cfg.val_dataloader, images)]
        if old is not None and self.statistics == 'both':
            found.append(spread_batches(old['dataloader'], old['dataloader'], images))
        return found

    def _changed_norms(self) -> list[str]:
        """Batch normalisation whose statistics differ between the ends; others were held while fine-tuning."""
        one, other = self.pair.states
        return [name for name in norm_layers(self._tests.model)
                if any(not torch.equal(one[f'{name}.{key}'], other[f'{name}.{key}']) for key in _BUFFERS[:2])]

    def _estimated(self, layers: Sequence[str], alpha: float) -> dict[str, Tensor]:
        """Statistics of layers over images of the new domain, or over those of both, in shares of the blend."""
        found, model = [], self._tests.model
        with quiet():
            for each in self._batches:
                estimate_statistics(model, each, layers=layers)
                found.append({key: value.detach().cpu().clone() for key, value in model.state_dict().items()
                              if key.rpartition('.')[0] in layers and key.rpartition('.')[2] in _BUFFERS})
        return blend_states(found[-1], found[0], alpha)


def _sets(cfg: Config) -> dict[str, Mapping[str, Any]]:
    """'new' and, if the config follows it, 'old' -> configs of its dataloader and evaluator."""
    sets: dict[str, Mapping[str, Any]] = dict(new=dict(dataloader=cfg.val_dataloader, evaluator=cfg.val_evaluator))
    old = ((cfg.get('val_cfg') or {}).get('others') or {}).get('old')
    if old is not None:
        check_other('old', old)
        sets['old'] = old
    return sets


def _check_old(cfg: Config, old: Mapping[str, Any]) -> None:
    try:
        check_datasets(Config(dict(model=cfg.model, val_dataloader=old['dataloader'], val_evaluator=old['evaluator']),
                              filename=cfg.filename), ('val', ))
    except UserError as error:
        raise UserError(f'val_cfg.others.old: {error}') from None


def spread_batches(dataloader: Mapping[str, Any], loads: Mapping[str, Any], images: int) -> DataLoader:
    """Images of a set, evenly spread, loaded as validation would, in batches of one size or a little smaller.

    Args:
        dataloader: Config that names the set; wrappers that repeat or mix are left out.
        loads: Config of the dataloader whose pipeline and batch size are taken.
        images: How many, at least two (one has no variance); all if the set has fewer.
    """
    pipeline = next(iter_dataset_cfgs(loads['dataset']))['pipeline']
    leaves = [dict(copy.deepcopy(dict(leaf)), pipeline=pipeline) for leaf in iter_dataset_cfgs(dataloader['dataset'])]
    dataset: ConcatDataset[Any] = ConcatDataset([DATASETS.build(leaf) for leaf in leaves])
    count = min(images, len(dataset))
    if count < 2:
        raise UserError(f'statistics need at least 2 images, got {count} (--images {images}, the set has '
                        f'{len(dataset)})')
    size = max(2, loads.get('batch_size', 1))
    parts = np.array_split(np.arange(count), max(1, min(math.ceil(count / size), count // 2)))
    return DataLoader(evenly(dataset, count), batch_sampler=[part.tolist() for part in parts],
                      collate_fn=pseudo_collate)


def read_pair(pretrained: str, finetuned: str, cfg: Config) -> tuple[Pair, list[str]]:
    """Read both files and hold them against each other and the config; also returns what a person should know.

    Raises:
        UserError: A file is missing or no checkpoint, or they are of different models or classes.
    """
    (one, before), (other, after) = (read_weights(path, cfg) for path in (pretrained, finetuned))
    differing = [key for key in {**one, **other} if key not in one or key not in other
                 or one[key].shape != other[key].shape]
    rows = [key for key in differing if '.predict_convs.' in key and key in one and key in other]
    if rows and len(rows) == len(differing):
        raise UserError(f'{pretrained} and {finetuned} have prediction rows of different class counts '
                        f'({one[rows[0]].shape[0]} and {other[rows[0]].shape[0]} rows in {rows[0]}); give the weights '
                        'the fine-tuning started from, with its classes: its start.pth, or its load_from')
    if differing:
        raise UserError(f'{pretrained} and {finetuned} are of different models: {len(differing)} tensors are missing '
                        f'in one or of another shape ({", ".join(differing[:3])}); give the weights before and after '
                        'one fine-tuning')
    notes = []
    for path, content in ((pretrained, before), (finetuned, after)):
        meta = content.get('meta')
        meta = meta if isinstance(meta, Mapping) else {}
        notes += compare_classes(path, meta, cfg, 'val') + compare_anchors(path, meta, cfg)
    return Pair((pretrained, finetuned), (one, other), after), notes
