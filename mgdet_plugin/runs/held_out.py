"""Test sets of one or several domains, and a model to put weights into."""
from __future__ import annotations

from collections.abc import Mapping

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mgdet_plugin.datasets import check_datasets, ensure_embedded_data
from mgdet_plugin.engine.checkpoint_check import check_fit, read_weights
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.runs.blend_data import build_domain, quiet


class HeldOut:
    """Measures weights on test sets.

    Args:
        configs: Name of a domain -> config with its test set; the model is that of the first.
        device: Where to compute. Default: the GPU where there is one.

    Raises:
        UserError: A dataset is missing or wrong.

    Attributes:
        cfg: The first config.
        model: The model, with weights of no meaning at first.
        domains: Name -> dataloader and evaluator of its test set.
    """

    def __init__(self, configs: Mapping[str, Config], device: str | torch.device | None = None) -> None:
        self.cfg = next(iter(configs.values()))
        init_default_scope(self.cfg.get('default_scope', 'mmdet'))
        for cfg in configs.values():
            ensure_embedded_data(cfg)
            check_datasets(cfg, ('test', ))
        self.model: BaseDetector = MODELS.build(self.cfg.model).to(
            device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        with quiet():
            self.domains = {name: build_domain(cfg.test_dataloader, cfg.test_evaluator)
                            for name, cfg in configs.items()}

    def read(self, path: str) -> Mapping[str, Tensor]:
        """The weights of a checkpoint, all of the model's.

        Args:
            path: Of the file.

        Raises:
            UserError: It is missing or does not fit.
        """
        state = read_weights(path, self.cfg)[0]
        check_fit(path, state, self.model.state_dict(), self.cfg)
        return state

    def measure(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """What weights reach on each test set.

        Args:
            state: Name -> tensor, all of the model's.

        Returns:
            Domain -> metric or loss -> value; no metric where nothing is detected.
        """
        self.model.load_state_dict(state, strict=True)
        with quiet():
            return {name: {key: float(value) for key, value in measure(self.model, *domain).items()}
                    for name, domain in self.domains.items()}
