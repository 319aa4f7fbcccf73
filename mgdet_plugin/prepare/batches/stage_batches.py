"""The samples of an epoch as a run of a config loads them, by the run's own dataset and batch sampler."""
from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.datasets.staged.sample_index import SampleIndex, kept_randomness
from mgdet_plugin.datasets.staged.staged_batch_sampler import StagedBatchSampler
from mgdet_plugin.datasets.staged.staged_dataset import StagedDataset, pipeline_steps
from mgdet_plugin.datasets.staged.staged_mix import StagedMix
from mgdet_plugin.engine.checkpoint_check import check_backbone, check_same_tensors, read_weights
from mgdet_plugin.engine.loops.staged_train_loop import staged_dataloader
from mgdet_plugin.engine.old_pictures import OldPictures
from mgdet_plugin.keep.teacher import Teacher, class_indices
from mgdet_plugin.plan.keeping import form_of, is_followed
from mgdet_plugin.plan.plan import Plan


class StageSample(NamedTuple):
    """One sample of a batch.

    Attributes:
        epoch: Epoch of the run, from 0.
        path: The picture it is named after; a mix shows others, too.
        old: Whether it is an old image, which the model is held on and not trained on.
        augmented: Names of the steps that the plan or a mix applied; None where no plan says what may be.
        inputs: (3, H, W) as the pipeline gives it, BGR.
        sample: What goes with it.
        batch: Number of the batch in its epoch, from 0.
        drawn: What the sampler gave, with the sample's seed; None of a run without a plan.
    """
    epoch: int
    path: str
    old: bool
    augmented: tuple[str, ...] | None
    inputs: Tensor
    sample: DetDataSample
    batch: int = 0
    drawn: SampleIndex | None = None


class StageBatches:
    """The batches of a stage of a plan from one of its epochs on, in a run of one process.

    Dataset and batch sampler are built as the training loop builds them, and told the same, so a sample is the run's
    own, bit for bit.

    Args:
        cfg: The config.
        plan: Its plan.
        stage: Stage, from 0.
        epoch: Epoch of the run, from 0.
        seed: Seed of the run.
        say: Takes a line on the progress.

    Raises:
        UserError: A part cannot be built; or ``keep.images_used`` needs weights that are not there.
    """

    def __init__(self, cfg: Config, plan: Plan, stage: int, epoch: int, seed: int,
                 say: Callable[[str], object] = str) -> None:
        loader = Runner.build_dataloader(staged_dataloader(cfg.train_dataloader, plan, cfg.get('val_dataloader')), seed)
        self.dataset: StagedDataset = loader.dataset
        self.sampler: StagedBatchSampler = loader.batch_sampler
        _pack_paths(step for leaf in self.dataset.leaves for step in pipeline_steps(leaf.pipeline))
        self.sampler.set_seed(seed)
        if plan.keep is not None and self.dataset.old is not None:
            memory = _pictures(cfg, plan, self.dataset, say).choose(plan.keep, self.dataset.old, is_followed(cfg))
            self.sampler.set_memory(*memory.groups(len(self.dataset)))
        self.stage, self.epoch = stage, epoch
        self.last = max(epoch, plan.first_epochs()[stage] + plan.stages[stage].epochs - 1)
        size = self.sampler.batch_sizes[stage] if self.sampler.batch_sizes else None
        new = size or self.sampler.batch_size
        beside = plan.keep.beside(new) if plan.keep is not None and self.sampler.memory else 0
        self.old_share = beside / (new + beside)

    @property
    def mixes(self) -> list[str]:
        """Names of the mixing steps of the pipelines of new images, in order."""
        names = dict.fromkeys(step.name for leaf in self.dataset.leaves for step in pipeline_steps(leaf.pipeline)
                              if isinstance(step, StagedMix))
        return list(names)

    def indices(self, count: int) -> list[tuple[int, SampleIndex]]:
        """Batch and index of so many samples, or of all there are to the stage's end.

        They are the first new ones, and behind them the first old ones in the ratio that a batch has them, at least
        one of each.
        """
        wanted_old = min(max(1, round(count * self.old_share)), count - 1) if self.old_share else 0
        wanted_new = count - wanted_old
        new: list[tuple[int, SampleIndex]] = []
        old: list[tuple[int, SampleIndex]] = []
        for number, index in self._all():
            (old if index >= len(self.dataset) else new).append((number, index))
            if len(new) >= wanted_new and len(old) >= wanted_old:
                break
        return new[:wanted_new] + old[:wanted_old]

    def drawn(self, count: int, most: int) -> set[int]:
        """Which of the first so many samples are drawn, at most ``most``: the first ones of new and of old images."""
        wanted = set(self.indices(min(count, most)))
        return {place for place, each in enumerate(self.indices(count)) if each in wanted}

    def _all(self) -> Iterator[tuple[int, SampleIndex]]:
        """Batch and index of every sample to the stage's end."""
        for epoch in range(self.epoch, self.last + 1):
            self.sampler.set_progress(epoch, self.stage)
            for number, batch in enumerate(self.sampler):
                for index in batch:
                    assert isinstance(index, SampleIndex)
                    yield number, index

    def samples(self, count: int) -> Iterator[StageSample]:
        """So many samples, see :meth:`indices`, one at a time."""
        for number, index in self.indices(count):
            loaded = self.dataset[index]
            sample = loaded['data_samples']
            yield StageSample(index.epoch, str(sample.img_path), bool(sample.get('kept')), tuple(sample.augmented),
                              loaded['inputs'], sample, number, index)


class PlainBatches:
    """The batches of a run without stages, as its own dataloader gives them.

    In the first epoch of a run of one process, whose images other processes load (``num_workers``), they are the run's
    own, bit for bit. In later epochs and without such processes the pictures and their order are, and what is drawn at
    random is not: that depends on what was drawn before.

    Args:
        cfg: The config.
        epoch: Epoch of the run, from 0.
        seed: Seed of the run.

    Raises:
        UserError: A part cannot be built.
    """
    mixes: Sequence[str] = ()

    def __init__(self, cfg: Config, epoch: int, seed: int) -> None:
        self._loader = Runner.build_dataloader(dict(cfg.train_dataloader), seed)
        self.dataset: Any = self._loader.dataset
        self.epoch = epoch
        _pack_paths(step for pipeline in _pipelines(self.dataset) for step in pipeline_steps(pipeline))

    def drawn(self, count: int, most: int) -> set[int]:
        """Which of the first so many samples are drawn: the first ones."""
        return set(range(min(count, most)))

    def samples(self, count: int) -> Iterator[StageSample]:
        """So many samples, in later epochs, too, one at a time."""
        return islice(self._all(), count)

    def _all(self) -> Iterator[StageSample]:
        for epoch in itertools.count(self.epoch):
            if hasattr(self._loader.sampler, 'set_epoch'):
                self._loader.sampler.set_epoch(epoch)
            for batch in self._loader:
                yield from (StageSample(epoch, str(sample.get('img_path')), False, None, inputs, sample)
                            for inputs, sample in zip(batch['inputs'], batch['data_samples']))


def _pipelines(dataset: Any) -> Iterator[Any]:
    """The pipelines of a dataset and of those inside its wrappers."""
    inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', ())
    for each in inner:
        yield from _pipelines(each)
    pipeline = getattr(dataset, 'pipeline', None)
    if pipeline is not None:  # a wrapper that mixes keeps its steps in a list
        yield pipeline if hasattr(pipeline, 'transforms') else SimpleNamespace(transforms=pipeline)


def _pack_paths(steps: Iterable[Any]) -> None:
    """Let the steps that pack a sample pack what is told here, which a config need not ask for."""
    for step in steps:
        if isinstance(step, PackDetInputs):
            step.meta_keys = (*step.meta_keys, 'img_path', 'augmented')


def _pictures(cfg: Config, plan: Plan, dataset: StagedDataset, say: Callable[[str], object]) -> OldPictures:
    """What chooses among the old images as a run does, with the start weights where these have to be asked."""
    assert plan.keep is not None
    names = (dataset.metainfo or {}).get('classes', ())
    model: Any = MODELS.build(cfg.model)
    form = form_of(model, plan.start, plan.keep.form)
    path = cfg.get('load_from')
    if plan.keep.images_used is None or (not os.path.isfile(path) if path else plan.start != 'backbone'):
        return OldPictures(cfg, None, form, names, say)
    content: Mapping[str, Any] = {}
    if path:
        state, content = read_weights(path, cfg)
        check_same_tensors(path, state, model.state_dict(), cfg)
    else:
        check_backbone(cfg, model)
        with kept_randomness():
            model.init_weights()
        state = model.state_dict()
    unknown = new_classes_of(content) if plan.keep.new_classes is None else plan.keep.new_classes
    return OldPictures(cfg, Teacher(model, state, class_indices(unknown, names)), form, names, say)
