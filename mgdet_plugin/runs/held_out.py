"""Weights measured on images that were held back: on any sets, and before and after fine-tuning on test sets."""
from __future__ import annotations

import copy
import io
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from mgdet_plugin.common.metric_names import expected_of
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data
from mgdet_plugin.engine.checkpoint_check import check_same_tensors, read_weights
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.weights.conversion import replace_class_rows
from mgdet_plugin.weights.mapping.classes import SEED


class HeldOut:
    """Measures weights on sets of one or several domains, whose data :func:`prepare_data` has seen to.

    Args:
        cfg: The config of the model.
        sets: Name of a domain -> configs of its ``dataloader`` and ``evaluator``; without the latter losses alone are
            measured.
        device: Where to compute. Default: the GPU where there is one.

    Attributes:
        cfg: The config.
        model: The model, with weights of no meaning at first.
        domains: Name -> dataloader and evaluator of its set.
    """

    def __init__(self, cfg: Config, sets: Mapping[str, Mapping[str, Any]],
                 device: str | torch.device | None = None) -> None:
        self.cfg = cfg
        with quiet():
            self.model: BaseDetector = MODELS.build(cfg.model).to(
                device or ('cuda' if torch.cuda.is_available() else 'cpu'))
            self.domains = {name: build_domain(**each) for name, each in sets.items()}

    @classmethod
    def of_tests(cls, configs: Mapping[str, Config], device: str | torch.device | None = None) -> HeldOut:
        """The test sets of configs, a domain each; the model is that of the first.

        Raises:
            UserError: A dataset is missing or wrong.
        """
        for cfg in configs.values():
            prepare_data(cfg, 'test')
        sets = {name: dict(dataloader=cfg.test_dataloader, evaluator=cfg.test_evaluator)
                for name, cfg in configs.items()}
        return cls(next(iter(configs.values())), sets, device)

    def read(self, path: str) -> Mapping[str, Tensor]:
        """The weights of a checkpoint, all of the model's.

        Raises:
            UserError: It is missing or does not fit.
        """
        state = read_weights(path, self.cfg)[0]
        check_same_tensors(path, state, self.model.state_dict(), self.cfg)
        return state

    def mean_aps(self, domain: str) -> list[str]:
        """Names of the mean APs that a domain's evaluator gives, as far as they are known before it measures."""
        evaluator = self.domains[domain][1]
        return expected_of(evaluator.metrics) if evaluator is not None else []

    def measure(self, state: Mapping[str, Tensor], only: Collection[str] = ()) -> dict[str, dict[str, float]]:
        """What weights, all of the model's, reach on each set, or on those of some domains.

        Returns:
            Domain -> metric or loss -> value; no metric where nothing is detected.
        """
        self.model.load_state_dict(state, strict=True)
        with quiet():
            return {name: {key: float(value) for key, value in measure(self.model, *domain).items()}
                    for name, domain in self.domains.items() if not only or name in only}


def prepare_data(cfg: Config, *splits: str) -> None:
    """Make the embedded data that a config needs, and look through its datasets.

    Raises:
        UserError: A dataset is missing or wrong.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ensure_embedded_data(cfg)
    check_datasets(cfg, splits)


def build_domain(dataloader: Mapping[str, Any], evaluator: Any = None) -> tuple[DataLoader, Evaluator | None]:
    """A set's dataloader and evaluator of their configs."""
    loader = Runner.build_dataloader(copy.deepcopy(dataloader), seed=0)
    if evaluator is None:
        return loader, None
    built = Evaluator(copy.deepcopy(evaluator))
    built.dataset_meta = loader.dataset.metainfo  # type: ignore[attr-defined]
    return loader, built


def random_rows(state: Mapping[str, Tensor], kept: Iterable[int]) -> dict[str, Tensor]:
    """A state dict whose prediction convolutions have rows drawn anew.

    Args:
        state: The state dict; prediction weights (D, K, 1, 1), biases (D,), of D = 5 + A + C channels of a map.
        kept: First rows that stay, for each prediction convolution.
    """
    generator = torch.Generator().manual_seed(SEED)
    changed = dict(state)
    for index, rows in enumerate(kept):
        weight, bias = (f'bbox_head.predict_convs.{index}.{name}' for name in ('weight', 'bias'))
        changed[weight], changed[bias] = replace_class_rows(
            state[weight], state[bias], rows, [None] * (len(state[bias]) - rows), generator)
    return changed


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
