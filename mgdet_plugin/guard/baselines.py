"""What a run is held against: losses and metrics of the weights it starts from, and of a random start."""
from __future__ import annotations

import hashlib
import io
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import GuardRecord, is_zero
from mgdet_plugin.common.metric_names import expected_of, figures_in_words, mean_aps
from mgdet_plugin.compat.console import NOTHING_FOUND, SAID
from mgdet_plugin.engine.hooks.random_state_hook import random_state, set_random_state
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.guard.guard_options import GuardOptions
from mgdet_plugin.keep.batch_statistics import estimate_statistics
from mgdet_plugin.models.multigrid_loss import RECIPE
from mgdet_plugin.plan.freezing import unwrap

FULL = 'full'  # a plan's start at which all weights have something to keep
_STATISTICS_IMAGES = 64
_SEED = 0
_SAY_EVERY = 10.0  # seconds
LOADED, RANDOM = 'the loaded weights', 'a random start'
_GUARDED = ('obj', 'conf', 'cls')  # in the names of objectness and class losses, of any detector of mmdet


def take_baselines(runner: Runner, loop: LossValLoop | None, record: GuardRecord, before: GuardRecord | None,
                   options: GuardOptions, new_classes: Sequence[str | int] = ()) -> None:
    """Measure losses and metrics of the loaded weights and of a random start, or take those of an earlier stage.

    Args:
        runner: The runner, before its first step.
        loop: Its validation loop, None if it measures no losses.
        record: Takes the figures.
        before: The record of the checkpoint the weights are from, if there is one.
        options: The guard's.
        new_classes: Those that the loaded weights have not learnt.

    Raises:
        UserError: A guarded loss is not there, or the loaded weights have no finite one.
    """
    if loop is None:
        runner.logger.warning('guard: no validation of this run measures losses, so only spikes, divergence and '
                              "NaN are guarded (val_cfg=dict(type='LossValLoop') measures them)")
        return
    begun = time.perf_counter()
    record.data = fingerprint(loop, ((runner.cfg.get('model') or {}).get('bbox_head') or {}).get('loss'))
    if before and (before.data, before.start) == (record.data, record.start) and before.pretrained:
        record.pretrained, record.random = before.pretrained, before.random
        record.subset, record.subset_images = before.subset, before.subset_images
        runner.logger.info('guard: losses are held against those of the weights the earlier stage started from')
    else:
        if record.start != 'nothing':
            with undisturbed(runner.model), told(runner, loop, LOADED):
                record.pretrained = scalars(loop.measure())
        if options.random_start:
            with told(runner, loop, RANDOM):
                record.random = measure_random(runner, loop)
        classes = (loop.dataloader.dataset.metainfo or {}).get('classes', ())  # type: ignore[attr-defined]
        _warn_of_worse(runner, record, 0 < len(classes) <= len(set(new_classes)))
    own = [name for name in (*record.pretrained, *record.random) if name.partition('/')[0] not in loop.others]
    record.metric = record.metric or next(iter([*expected_of(loop.evaluator.metrics), *mean_aps(own)]), '')
    record.guarded = guarded_terms(record, options.terms)
    _say(runner, record, time.perf_counter() - begun)


def guarded_terms(record: GuardRecord, terms: str | Sequence[str] | None) -> list[str]:
    """Names of the guarded losses.

    Raises:
        UserError: One is not there, or the loaded weights have no finite loss to keep.
    """
    names = [name.removeprefix('val/') for name in record.pretrained or record.random if name.startswith('val/loss_')]
    given = [terms] if isinstance(terms, str) else terms
    guarded = [name for name in names if any(part in name for part in _GUARDED) and not is_zero(
        f'val/{name}', record.pretrained, record.random)] if given is None else list(given)
    unknown = sorted(set(guarded) - set(names))
    if names and unknown:
        raise UserError(f"DriftGuardHook: terms names '{unknown[0]}', and the losses are {', '.join(names)}")
    broken = [name for name in guarded if not math.isfinite(record.pretrained.get(f'val/{name}', 0.0))]
    if broken:
        raise UserError(f'the loaded weights give {broken[0]}={record.pretrained[f"val/{broken[0]}"]} on the '
                        'validation set; there is nothing to keep: look at the weights and the images')
    return guarded


def _say(runner: Runner, record: GuardRecord, seconds: float) -> None:
    """Log the baselines and give them to the visualizer as epoch 0."""
    if record.pretrained:
        runner.logger.info(f'before training: {figures_in_words(record.pretrained)}', extra=SAID)
    for name, values in ((LOADED, record.pretrained), (RANDOM, record.random)):
        if values:
            figures = [f'{key} {value:.4g}' for key, value in values.items() if 'loss' in key
                       or key.endswith(record.metric)]
            nothing = [f'no {record.metric}: nothing is detected'] if record.metric not in (*values, '') else []
            runner.logger.info(f'guard: {name}: {", ".join([*figures, *nothing])}')
    zero = [key for key in record.pretrained or record.random
            if key.startswith('val/loss_') and is_zero(key, record.pretrained, record.random)]
    if zero:
        runner.logger.info(f'guard: {", ".join(zero)} is 0 whatever the weights (a single class, or no boxes): it is '
                           'left out of the guard and its figures')
    runner.logger.info(f'guard: baselines took {seconds:.1f} s; guarded: {", ".join(record.guarded) or "nothing"}, '
                       f'at most {1 + record.limit:.2f} times')
    if record.pretrained:
        runner.visualizer.add_scalars(dict(record.pretrained), step=0, file_path=f'{runner.timestamp}.json')


def _warn_of_worse(runner: Runner, record: GuardRecord, all_new: bool) -> None:
    """Say before the first step that weights know less than nothing of the images they are to be trained on.

    Where they have learnt none of the classes, the loss of these is random in both and is left out.
    """
    def loss(values: Mapping[str, float]) -> float:
        of_class = [value for name, value in values.items() if name.startswith('val/loss_') and 'cls' in name]
        return values.get('val/loss', math.nan) - (sum(of_class) if all_new else 0)

    loaded, start = loss(record.pretrained), loss(record.random)
    if record.start == FULL and loaded > start:
        what = 'val/loss without that of the classes, which are all new,' if all_new else 'val/loss'
        runner.logger.warning(
            f'guard: {LOADED} are worse than {RANDOM} on the validation images, {what} {loaded:.4g} against '
            f'{start:.4g}. Images of another domain can do that; far more often it is classes in another order, '
            'colours in another order or another mean and std than the weights were trained with, other anchors or '
            'strides, or labels that are not those of the images: look at these before training')


@contextmanager
def told(runner: Runner, loop: LossValLoop, what: str) -> Iterator[None]:
    """Log how far a measurement of the runner's model within it has come, and nothing that metrics say of theirs.

    They print tables, and CocoMetric an error where nothing is detected, as is expected of a random start.
    """
    loops = (loop, *loop.others.values())
    total = sum(len(each.dataloader.dataset) for each in loops) / get_world_size()
    begun = said = time.perf_counter()
    done = 0

    def count(_module: nn.Module, _inputs: Any, data: Mapping[str, Any]) -> None:
        nonlocal done, said
        done += len(data['inputs'])
        now = time.perf_counter()
        if now - said >= _SAY_EVERY and done < total:
            said = now
            runner.logger.info(f'guard: measuring {what}: {done} of {total:.0f} images, about '
                               f'{max(0.0, (now - begun) * (total - done) / done):.0f} s left', extra=SAID)

    def ours(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text.startswith('guard: ') or (record.levelno >= logging.WARNING and not text.startswith(NOTHING_FOUND))

    preprocessor: Any = unwrap(runner.model).data_preprocessor
    counted = preprocessor.register_forward_hook(count)
    runner.logger.addFilter(ours)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        runner.logger.removeFilter(ours)
        counted.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Measure within it: random state, weights, statistics and modes of the layers are afterwards as before."""
    model = unwrap(model)
    state = random_state()
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_random_state(state)


def measure_random(runner: Runner, loop: LossValLoop) -> dict[str, float]:
    """Losses and metrics of a model that was never trained, always the same.

    Its running statistics are estimated on validation images: without that its normalisation would be wrong by far, and
    any weights would be better than it.
    """
    model, batches = unwrap(runner.model), loop.dataloader
    with undisturbed(model):
        own = {key: value.clone() for key, value in model.state_dict().items()}
        random.seed(_SEED)
        torch.manual_seed(_SEED)
        start = MODELS.build(without_pretrained(runner.cfg.model))
        start.init_weights()
        start.to(next(model.parameters()).device)
        images = evenly(batches.dataset, _STATISTICS_IMAGES)  # the same in every process, so the same statistics
        estimate_statistics(start, DataLoader(images, batch_size=batches.batch_size or 1,
                                              collate_fn=batches.collate_fn))
        try:
            model.load_state_dict(start.state_dict(), strict=True)
            return scalars(loop.measure())
        finally:
            model.load_state_dict(own, strict=True)


def without_pretrained(cfg: Any) -> Any:
    """A model's config without the weights it would load."""
    if isinstance(cfg, Mapping):
        return {key: without_pretrained(value) for key, value in cfg.items()
                if not (key == 'init_cfg' and isinstance(value, Mapping) and value.get('type') == 'Pretrained')}
    return type(cfg)(without_pretrained(each) for each in cfg) if isinstance(cfg, (list, tuple)) else cfg


def subset_loader(loop: LossValLoop, images: int) -> DataLoader:
    """Batches of at most so many images of a validation set, evenly spread, in order; each process has its share."""
    whole = loop.dataloader
    subset: Any = evenly(whole.dataset, images)
    return DataLoader(subset, batch_size=whole.batch_size or 1, collate_fn=whole.collate_fn,
                      sampler=DefaultSampler(subset, shuffle=False, seed=0))  # without a seed it would draw one


def evenly(dataset: Any, images: int) -> Subset:
    """Some images of a dataset, evenly spread, in order; all if it has fewer."""
    count = min(images, len(dataset))
    return Subset(dataset, [index * len(dataset) // count for index in range(count)])


def measure_subset(runner: Runner, batches: DataLoader) -> dict[str, float]:
    """Losses of the weights as they are on a subset, 'val/loss' and every term."""
    with undisturbed(runner.model):
        return {f'val/{name}': value for name, value in measure(runner.model, batches).items()}


def fingerprint(loop: LossValLoop, loss: Mapping[str, Any] | None = None) -> str:
    """A hash of the validation sets and of what is measured on them; equal ones give comparable figures.

    File names, boxes, classes, pipelines, kinds of metrics and the loss's config count, but what validation replaces
    in it.
    """
    said: list[Any] = [sorted((key, repr(value)) for key, value in (loss or {}).items() if key not in RECIPE)]
    for name, each in {'': loop, **loop.others}.items():
        dataset: Any = each.dataloader.dataset
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            said.append((Path(str(info.get('img_path', index))).name, [
                (list(map(float, one['bbox'])), int(one['bbox_label'])) for one in info.get('instances') or ()]))
        said += [name, list((dataset.metainfo or {}).get('classes') or ()), *map(repr, pipelines(dataset)),
                 [type(metric).__name__ for metric in each.evaluator.metrics]]
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def pipelines(dataset: Any) -> Iterator[Any]:
    """The pipelines of a dataset, also of those inside wrappers."""
    inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', None)
    if inner is None:
        yield getattr(dataset, 'pipeline', '')
    for each in inner or ():
        yield from pipelines(each)


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among metrics."""
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)}
