"""What tests of the guard add to runs of :mod:`tests.support.staged_run`.

Numbers that are not finite, weights that were ruined, and the state of everything after every iteration.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.engine.optim.moving_average import ema_hooks
from mgdet_plugin.plan.freezing import unwrap
from tests.support.staged_run import staged_config

NAN = float('nan')
EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02)


def guarded_config(folder: Path, data: Path, stages: Sequence[dict], guard: Mapping[str, Any] | None = None,
                   **options: Any) -> Config:
    """A config of :func:`staged_config` that saves no best checkpoint.

    Args:
        folder: Where its file lies.
        data: The images.
        stages: The plan.
        guard: Arguments of ``DriftGuardHook``.
        **options: Dotted config keys.
    """
    cfg = staged_config(folder, data, stages, **options)
    cfg.default_hooks.drift_guard.update(guard or {})
    cfg.default_hooks.checkpoint.save_best = None
    return cfg


@HOOKS.register_module(force=True)
class FaultHook(Hook):
    """Make iterations bad before any other hook sees them.

    Args:
        faults: Iteration (as text, so that a config may hold it) -> 'loss', 'gradient', 'nan image', 'inf image',
            'label' or a number by which the loss is multiplied.
    """
    priority = 0

    def __init__(self, faults: Mapping[Any, Any]) -> None:
        self.faults = {int(key): kind for key, kind in faults.items()}
        self.undo: Callable[[], Any] | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        kind = self.faults.get(runner.iter)
        model = unwrap(runner.model)
        if kind == 'loss' or isinstance(kind, (int, float)):
            self.undo = scale_loss(model, NAN if kind == 'loss' else kind)
        elif kind == 'gradient':
            parameter = model.bbox_head.predict_convs[1].weight
            self.undo = parameter.register_hook(lambda grad: grad * NAN).remove
        elif kind in ('nan image', 'inf image'):
            image = data_batch['inputs'][0].float()
            image[0, 3, 3] = NAN if kind == 'nan image' else float('inf')
            data_batch['inputs'][0] = image
        elif kind == 'label':
            boxes = data_batch['data_samples'][0].gt_instances.bboxes
            getattr(boxes, 'tensor', boxes)[0, 0] = NAN

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.undo is not None:
            self.undo()
            self.undo = None


def scale_loss(model: Any, factor: float) -> Callable[[], None]:
    """Multiply the objectness loss of the steps to come; returns what ends it."""
    own = model.loss

    def loss(*args: Any, **kwargs: Any) -> dict[str, Any]:
        terms = own(*args, **kwargs)
        return {**terms, 'loss_obj': terms['loss_obj'] * factor}

    model.loss = loss
    return lambda: delattr(model, 'loss')


@HOOKS.register_module(force=True)
class RuinHook(Hook):
    """Multiply the weights of the last layers and their averages, before any other hook.

    Args:
        epochs: Epoch (as text) -> factor, after that many epochs.
        iterations: Iteration (as text) -> factor, right before it.
    """
    priority = 0

    def __init__(self, epochs: Mapping[Any, float] | None = None,
                 iterations: Mapping[Any, float] | None = None) -> None:
        self.epochs = {int(key): value for key, value in (epochs or {}).items()}
        self.iterations = {int(key): value for key, value in (iterations or {}).items()}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.ruin(runner, self.iterations.get(runner.iter, 1.0))

    def after_train_epoch(self, runner: Runner) -> None:
        self.ruin(runner, self.epochs.get(runner.epoch + 1, 1.0))

    @staticmethod
    @torch.no_grad()
    def ruin(runner: Runner, factor: float) -> None:
        for model in (unwrap(runner.model), *(hook.ema_model.module for hook in ema_hooks(runner))):
            for conv in model.bbox_head.predict_convs if factor != 1 else ():
                conv.weight.mul_(factor)
                conv.bias.mul_(factor)


class Recorder(Hook):
    """Keep the state before the first iteration, after each, and after each validation; after every other hook."""
    priority = 100

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.validated: list[dict[str, Any]] = []
        self.rates: list[float] = []
        self.files: list[list[str]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if not self.states:
            self.states.append(whole_state(runner))
        self.rates.append(runner.optim_wrapper.param_groups[0]['lr'])
        self.files.append([sample.img_path for sample in data_batch['data_samples']])

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.states.append(whole_state(runner))

    def after_val(self, runner: Runner) -> None:
        self.validated.append(whole_state(runner))


def whole_state(runner: Runner) -> dict[str, Any]:
    """Copies of everything that a step may change but rates and random states."""
    model = unwrap(runner.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = runner.optim_wrapper.optimizer.state
    return dict(
        weights={name: copied(each) for name, each in model.named_parameters()},
        buffers={name: copied(each) for name, each in model.named_buffers()},
        average=[{name: copied(each) for name, each in hook.ema_model.state_dict().items()}
                 for hook in ema_hooks(runner)],
        optimizer={names[id(parameter)]: {key: copied(value) for key, value in moments.items()}
                   for parameter, moments in state.items()})


def copied(value: Any) -> Any:
    """A tensor's copy."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def guard_json(work_dir: Path) -> dict[str, Any]:
    """What the guard wrote in a run's folder."""
    return json.loads((work_dir / 'guard.json').read_text())


def events(work_dir: Path) -> list[tuple[str, str, int, list[str]]]:
    """Kind, place, iteration and actions of what the guard saw."""
    return [(each['kind'], each['where'], each['iter'], each['actions']) for each in guard_json(work_dir)['events']]
