"""What a run is held against: losses and metrics of the weights it starts from, and of a random start."""
from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from mgdet_plugin.engine.batch_statistics import estimate_statistics
from mgdet_plugin.engine.freezing import unwrap
from mgdet_plugin.engine.loss_val_loop import LossValLoop
from mgdet_plugin.engine.random_state_hook import random_state, set_random_state
from mgdet_plugin.engine.validation import measure

_STATISTICS_IMAGES = 64
_SEED = 0


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


def measure_pretrained(runner: Runner, loop: LossValLoop) -> dict[str, float]:
    """Losses and metrics of the weights as they are, on all validation sets."""
    with undisturbed(runner.model):
        return scalars(loop.measure())


def measure_random(runner: Runner, loop: LossValLoop) -> dict[str, float]:
    """The same of a model that was never trained, its running statistics estimated on validation images.

    Without that its normalisation would be wrong by far, and any weights would be better than it.
    """
    model = unwrap(runner.model)
    with undisturbed(model):
        own = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            model.load_state_dict(random_start(runner.cfg, model, loop.dataloader), strict=True)
            return scalars(loop.measure())
        finally:
            model.load_state_dict(own, strict=True)


def random_start(cfg: Config, like: nn.Module, batches: DataLoader) -> dict[str, Tensor]:
    """Weights of a config's model that was never trained, always the same, with statistics of some images.

    Args:
        cfg: The whole config.
        like: The built model, for its device.
        batches: Images for the statistics.
    """
    random.seed(_SEED)
    torch.manual_seed(_SEED)
    model = MODELS.build(without_pretrained(cfg.model))
    model.init_weights()
    model.to(next(like.parameters()).device)
    size = getattr(batches, 'batch_size', None) or 1
    estimate_statistics(model, islice(batches, max(1, _STATISTICS_IMAGES // size)))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            all_reduce(buffer, 'mean')  # each process saw other images
    return dict(model.state_dict())


def without_pretrained(cfg: Any) -> Any:
    """A model's config without the weights it would load."""
    if isinstance(cfg, Mapping):
        return {key: without_pretrained(value) for key, value in cfg.items()
                if not (key == 'init_cfg' and isinstance(value, Mapping) and value.get('type') == 'Pretrained')}
    return type(cfg)(without_pretrained(each) for each in cfg) if isinstance(cfg, (list, tuple)) else cfg


def subset_loader(loop: LossValLoop, images: int) -> DataLoader:
    """Batches of some images of a validation set, evenly spread, in order; each process has its share.

    Args:
        loop: The loop.
        images: How many at most.
    """
    whole = loop.dataloader
    count = min(images, len(whole.dataset))
    indices = [index * len(whole.dataset) // count for index in range(count)]
    subset: Any = Subset(whole.dataset, indices)
    return DataLoader(subset, batch_size=whole.batch_size or 1, collate_fn=whole.collate_fn,
                      sampler=DefaultSampler(subset, shuffle=False, seed=0))  # without a seed it would draw one


def measure_subset(runner: Runner, batches: DataLoader) -> dict[str, float]:
    """Losses of the weights as they are on a subset, 'val/loss' and every term."""
    with undisturbed(runner.model):
        return {f'val/{name}': value for name, value in measure(runner.model, batches).items()}


def fingerprint(loop: LossValLoop) -> str:
    """A hash of the validation sets: file names, classes and pipelines; equal ones give comparable losses."""
    said: list[Any] = []
    for name, each in {'': loop, **loop.others}.items():
        dataset: Any = each.dataloader.dataset
        files = [Path(str(dataset.get_data_info(index).get('img_path', index))).name for index in range(len(dataset))]
        said += [name, files, list((dataset.metainfo or {}).get('classes') or ()),
                 repr(getattr(dataset, 'pipeline', ''))]
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among metrics."""
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)}
