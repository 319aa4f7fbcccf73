"""The images that blends of weights are measured on, and those their statistics are estimated from."""
from __future__ import annotations

import copy
import io
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset, DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import check_datasets, iter_dataset_cfgs
from mgdet_plugin.engine.loops.loss_val_loop import check_other
from mgdet_plugin.guard.baselines import spread

STATISTICS = ('new', 'both', 'blended')


def domain_cfgs(cfg: Config) -> dict[str, dict[str, Any]]:
    """'new' and, if the config follows it, 'old' -> configs of its dataloader and evaluator."""
    domains = dict(new=dict(dataloader=cfg.val_dataloader, evaluator=cfg.val_evaluator))
    old = ((cfg.get('val_cfg') or {}).get('others') or {}).get('old')
    if old is not None:
        check_other('old', old)
        domains['old'] = dict(dataloader=old['dataloader'], evaluator=old['evaluator'])
    return domains


def build_domain(dataloader: dict[str, Any], evaluator: Any) -> tuple[DataLoader, Evaluator]:
    """A domain's dataloader and evaluator."""
    loader = Runner.build_dataloader(copy.deepcopy(dataloader), seed=0)
    built = Evaluator(copy.deepcopy(evaluator))
    built.dataset_meta = loader.dataset.metainfo  # type: ignore[attr-defined]
    return loader, built


def training_batches(cfg: Config, images: int) -> DataLoader:
    """Training images of a config, evenly spread over the set, as validation would load them.

    Args:
        cfg: The config.
        images: How many; all if the set has fewer.

    Raises:
        UserError: There are fewer than two images, which have no variance.
    """
    return spread_batches(cfg.train_dataloader, cfg.val_dataloader, images)


def spread_batches(dataloader: Mapping[str, Any], loads: Mapping[str, Any], images: int) -> DataLoader:
    """Images of a set, evenly spread, in batches of one size or a little smaller.

    Args:
        dataloader: Config that names the set; wrappers that repeat or mix are left out.
        loads: Config of the dataloader whose pipeline and batch size are taken.
        images: How many; all if the set has fewer.

    Raises:
        UserError: There are fewer than two images, which have no variance.
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
    return DataLoader(spread(dataset, count), batch_sampler=[part.tolist() for part in parts],
                      collate_fn=pseudo_collate)


def statistics_batches(cfg: Config, domains: Mapping[str, Mapping[str, Any]], statistics: str,
                       images: int) -> list[DataLoader]:
    """What the statistics of blends are estimated from: images of the new and maybe of the old domain, or nothing.

    Args:
        cfg: The config.
        domains: Of :func:`domain_cfgs`.
        statistics: ``new``, ``both`` or ``blended``.
        images: How many of each domain.

    Raises:
        UserError: It is none of these, there is no old domain, or there are fewer than two images.
    """
    if statistics not in STATISTICS:
        raise UserError(f"--statistics must be one of {', '.join(STATISTICS)}, got '{statistics}'")
    if statistics == 'both' and 'old' not in domains:
        raise UserError('--statistics both needs images of the old domain; set val_cfg.others.old in the config, or '
                        'take --statistics new')
    found = [] if statistics == 'blended' else [training_batches(cfg, images)]
    if statistics == 'both':
        old = domains['old']['dataloader']
        found.append(spread_batches(old, old, images))
    return found


def check_data(cfg: Config, domains: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the files of all datasets."""
    check_datasets(cfg, ('train', 'val'))
    if 'old' in domains:
        old = Config(dict(model=cfg.model, val_dataloader=domains['old']['dataloader'],
                          val_evaluator=domains['old']['evaluator']), filename=cfg.filename)
        try:
            check_datasets(old, ('val', ))
        except UserError as error:
            raise UserError(f'val_cfg.others.old: {error}') from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what metrics print and log about each evaluation to themselves."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
