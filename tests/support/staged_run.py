"""Runs of a plan small enough for a test: the model at a sixteenth of its width on eight drawn images, in this process.

What tests add to a run is registered here: a neck that draws random numbers, a metric that says what a table says,
and a hook that ends a run as ``kill -9`` would, right after something happened.
"""
from __future__ import annotations

import copy
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.models.backbones import Darknet
from mmdet.registry import HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from torch.nn import functional as F

from mgdet_plugin.models import MultiGridNeck, ScaledDarknet
from tests.support.small_run import write_config

_NUMBERS = itertools.count()
HEAD = dict(name='head', epochs=2, freeze_level=2, lr=1e-4)
NECK = dict(name='neck', epochs=2, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1)
FULL = dict(name='full', epochs=2, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1)
STEPS = 2  # iterations an epoch: eight images, batch 4


class Killed(BaseException):
    """The process is gone."""


@MODELS.register_module(force=True)
class ShallowDarknet(ScaledDarknet):
    """Darknet53 with one residual block a stage: its stages and strides with 16 of its 52 convolutions.

    What a run this small costs goes by the number of tensors that are made, stepped, saved and loaded.
    """
    arch_settings = {depth: ((1, ) * len(blocks), widths) for depth, (blocks, widths) in Darknet.arch_settings.items()}


@MODELS.register_module(force=True)
class DroppingNeck(MultiGridNeck):
    """A neck that draws from torch's generator in the main process: what it gives depends on the random state."""

    def forward(self, feats: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(F.dropout(out, 0.1, self.training) for out in super().forward(feats))


@METRICS.register_module(force=True)
class TableMetric(BaseMetric):
    """``table/value`` after each epoch as a table says; the last value stays."""
    default_prefix = 'table'

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = list(values)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        epoch = int(MessageHub.get_current_instance().get_info('epoch') or 0)
        return dict(value=self.values[min(epoch, len(self.values) - 1)])


class MomentHook(Hook):
    """Does something at moments of a run, after every other hook.

    A moment is 'iter' (after that many iterations), 'epoch' (after that many epochs, before their validation) or 'val'
    (after the validation of that epoch), and a number.
    """
    priority = 100

    def at(self, runner: Runner, moment: str, count: int) -> None:
        """Called at every moment."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.at(runner, 'iter', runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        self.at(runner, 'epoch', runner.epoch + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.at(runner, 'val', runner.epoch)


@HOOKS.register_module(force=True)
class KillHook(MomentHook):
    """Raise :class:`Killed` at a moment."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment = moment, count

    def at(self, runner: Runner, moment: str, count: int) -> None:
        if (moment, count) == self.moment:
            raise Killed


class SnapshotHook(MomentHook):
    """Keep a run's folder as a process killed at some moments would have left it: resumed, it is what a killed run is.
    """

    def __init__(self, folder: Path, moments: Sequence[tuple[str, int]]) -> None:
        self.folder, self.moments = folder, set(moments)

    def at(self, runner: Runner, moment: str, count: int) -> None:
        if (moment, count) in self.moments:
            copy_folder(Path(runner.work_dir), self.folder / f'{moment}-{count}')

    def copy(self, moment: str, count: int, work_dir: Path) -> Path:
        """A folder to resume in, as the run's was at a moment."""
        copy_folder(self.folder / f'{moment}-{count}', work_dir)
        last = work_dir / 'last_checkpoint'
        last.write_text(str(work_dir / Path(last.read_text().strip()).name))
        return work_dir


def copy_folder(source: Path, target: Path) -> None:
    """Copy a run's folder; its checkpoints, which appear whole and are never written to, by a second name."""
    shutil.copytree(source, target, copy_function=lambda one, other: (
        os.link if one.endswith('.pth') else shutil.copy2)(one, other))


@HOOKS.register_module(force=True)
class ForgetfulHook(Hook):
    """Take the random state out of a loaded checkpoint, for a control; the dataloaders keep their own generators."""
    priority = 0

    def before_train(self, runner: Runner) -> None:
        for loader in (runner.train_dataloader, runner.val_dataloader):
            loader.generator = torch.Generator().manual_seed(0)


def staged_config(folder: Path, data: Path, stages: Sequence[dict], **options: Any) -> Config:
    """A config of a tiny run with a plan.

    Args:
        folder: Where its file and runs lie.
        data: What :func:`tests.support.small_run.make_dataset` made.
        stages: The plan.
        **options: Dotted config keys.
    """
    # an untrained shallow one sees nothing in pictures that a run is held to
    backbone = 'ScaledDarknet' if options.get('keep') else 'ShallowDarknet'
    path = write_config(folder / f'config{next(_NUMBERS)}.py', data, base='mgdet_model5_staged.py', load_from=None,
                        **{'model.backbone.type': backbone, 'model.neck.type': 'DroppingNeck', **options})
    cfg = Config.fromfile(path)
    cfg.train_cfg.pop('max_epochs', None)
    cfg.stages = [dict(stage) for stage in stages]
    cfg.model.bbox_head.loss.class_weights = None
    cfg.val_evaluator = dict(type='TableMetric', values=(0.1, ))
    cfg.val_dataloader.dataset.indices = 2
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.serialize_data = False  # which collects garbage, a third of a run's time
    cfg.default_hooks.checkpoint.update(save_best='table/value', rule='greater', max_keep_ckpts=-1)
    cfg.default_hooks.pop('visualization', None)
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]  # TensorBoard takes a second to import
    cfg.log_level = 'WARNING'
    return cfg


def run(cfg: Config, work_dir: Path, kill: tuple[str, int] | None = None, resume: bool = False,
        hooks: Sequence[Any] = (), change: Callable[[Config], None] | None = None) -> Runner:
    """Train in this process.

    Args:
        cfg: Of :func:`staged_config`; it is not changed.
        work_dir: The run's folder.
        kill: When the run ends as if killed.
        resume: From the newest checkpoint in the folder.
        hooks: More hooks.
        change: Called with the copy of the config that is run.

    Returns:
        The runner, after training or after it was killed.
    """
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.resume = str(work_dir), resume
    cfg.experiment_name = f'{work_dir.name}-{next(_NUMBERS)}'  # the log's history goes by this name
    cfg.visualizer.name = cfg.experiment_name  # and what it writes by this
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *([dict(type='KillHook', moment=kill[0], count=kill[1])]
                                                          if kill else [])]
    if change:
        change(cfg)
    torch.manual_seed(next(_NUMBERS))  # what a process has drawn before must not matter
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    try:
        runner.train()
        assert kill is None, f'the run ended before {kill}'
    except Killed:
        pass
    return runner


def newest(work_dir: Path) -> dict[str, Any]:
    """The newest checkpoint of a run."""
    return torch.load((work_dir / 'last_checkpoint').read_text().strip(), weights_only=True)


def differences(one: Any, other: Any, where: str = '') -> list[str]:
    """Where two nested values differ, bit for bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        same = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype and (
            one.shape == other.shape) and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(
                torch.uint8))
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f'{where}/{key} only once' for key in {*one} ^ {*other}]
        return missing + [each for key in one if key in other for each in differences(one[key], other[key],
                                                                                      f'{where}/{key}')]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f'{where}: {len(one)} and {len(other)} entries']
        return [each for index, pair in enumerate(zip(one, other)) for each in differences(*pair, f'{where}[{index}]')]
    return [] if one == other or (one != one and other != other) else [f'{where}: {one!r} and {other!r}']


def state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What of a checkpoint must be equal: all but times, paths and the log of the machine."""
    scalars = checkpoint['message_hub']['log_scalars']
    kept = {key: value for key, value in scalars.items()
            if key.startswith('train/') and ('loss' in key or key.endswith('lr') or 'grad' in key)}
    assert any('loss' in key for key in kept)
    parts = {key: checkpoint[key] for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers',
                                              'random_state', 'mgdet', 'gradients', 'guard') if key in checkpoint}
    parts['mgdet'] = {key: value for key, value in parts['mgdet'].items() if key != 'run'}
    return dict(parts, losses=kept, epoch=checkpoint['meta']['epoch'], iter=checkpoint['meta']['iter'])
