"""What the guard costs: validation with losses against validation without, a guarded training step against a plain one.

The small model at 192 pixels, where fixed costs weigh most, with random weights, which detect nothing: whatever the
guard adds is measured against as little other work as there can be.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from torch import nn

from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.engine.loops.validation import LossMeter, measured_step
from mgdet_plugin.engine.optim.step_guard import StepGuard
from mgdet_plugin.guard.loss_watch import DRIFT, LossBlock, LossWatch
from mgdet_plugin.plan.freezing import unwrap

CONFIG = 'configs/mgdet_nano_staged.py'
IMAGES, BATCH = 48, 8
_WINDOW, _INTERVAL = 50, 10
Case = Callable[[], Any]


def validation(device: torch.device) -> tuple[str, Case, Case]:
    """A pass over the validation images of two domains with predictions and losses, and one with predictions alone."""
    model, domains = small_model(device), (_batches('val'), _batches('old'))
    model.eval()

    def ours() -> None:
        for batches in domains:
            meter = LossMeter()
            with torch.no_grad():
                for batch in batches:
                    measured_step(model, batch, meter)
            meter.means(device)

    @torch.no_grad()
    def peer() -> None:
        for batch in [batch for batches in domains for batch in batches]:
            model.val_step(batch)  # type: ignore[operator]

    what = f"mmengine's val_step of the same detector, two domains of {IMAGES} images of 192 pixels, loaded before"
    return what, ours, peer


def guarded_step(device: torch.device) -> tuple[str, Case, Case]:
    """Ten training steps with everything the guard does in them, and ten without."""
    batches = _batches('train')
    ours, peer = (_guarded(*_trained(device), batches), _plain(*_trained(device), batches))
    return f"the detector's own train_step, {_INTERVAL} steps of {BATCH} images of 192 pixels", ours, peer


def _trained(device: torch.device) -> tuple[nn.Module, OptimWrapper]:
    model = small_model(device)
    model.train()
    return model, OptimWrapper(torch.optim.Adam(model.parameters(), lr=1e-6, eps=1e-7))


def _guarded(model: nn.Module, wrapper: OptimWrapper, batches: list[Any]) -> Case:
    guard, watch = StepGuard(model, wrapper), LossWatch()

    def run() -> None:
        block = LossBlock()
        for index in range(_INTERVAL):
            outputs, _ = guard.step(batches[index % len(batches)])
            block.add({name: float(value.detach()) for name, value in outputs.items()})
        means, peak = block.over_processes(next(unwrap(model).parameters()).device)
        watch.spike(peak, 5.0)
        watch.take(means, block.count, _WINDOW)
        assert all(sign.kind != DRIFT for sign in watch.signs(2.0, 0.2, ()))

    return run


def _plain(model: Any, wrapper: OptimWrapper, batches: list[Any]) -> Case:

    def run() -> None:
        for index in range(_INTERVAL):
            outputs = model.train_step(batches[index % len(batches)], optim_wrapper=wrapper)
            assert all(float(value.detach()) >= 0 for value in outputs.values())  # as mmengine's hooks read them

    return run


def small_model(device: torch.device) -> nn.Module:
    """The small detector with random weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = Config.fromfile(Path(__file__).parents[1] / CONFIG).model
    cfg.bbox_head.loss.class_weights = None
    return MODELS.build(cfg).to(device)


def _batches(split: str) -> list[Any]:
    """Batches of a split of the embedded target domain, or of the old domain's validation, plain, in memory."""
    cfg = Config.fromfile(Path(__file__).parents[1] / CONFIG)
    init_default_scope('mmdet')
    ensure_embedded_data(cfg)
    settings = (cfg.val_cfg.others.old.dataloader if split == 'old' else cfg[f'{split}_dataloader']).dataset
    settings.pipeline = cfg.val_dataloader.dataset.pipeline
    dataset = DATASETS.build(settings)
    samples = [dataset[index] for index in range(IMAGES)]
    return [pseudo_collate(samples[first:first + BATCH]) for first in range(0, IMAGES, BATCH)]
