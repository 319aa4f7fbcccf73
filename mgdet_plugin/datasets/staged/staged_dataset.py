"""A dataset whose samples are pure functions of (seed, epoch, index, stage), with the probabilities of a plan."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmcv.transforms import Compose as TransformCompose
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset, ClassBalancedDataset, Compose, ConcatDataset, RepeatDataset
from torch.utils.data import Dataset

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.building import step_in_a_line
from mgdet_plugin.datasets.staged.sample_index import SampleIndex, sample_randomness, sample_seed, watched
from mgdet_plugin.datasets.staged.staged_mix import Sample, StagedMix
from mgdet_plugin.datasets.transforms.letterbox import Letterbox
from mgdet_plugin.datasets.transforms.load_readable_image import LoadReadableImage

Step = Callable[[Sample], Sample | None]


def step_name(step: Step) -> str:
    """What a plan calls a step: ``name`` of a StagedMix, else the class, as in the config."""
    return step.name if isinstance(step, StagedMix) else type(step).__name__


def pipeline_steps(pipeline: Any) -> Iterator[Step]:
    """The steps of a built pipeline in order, Compose in Compose included."""
    for step in pipeline.transforms:
        if isinstance(step, (Compose, TransformCompose)):
            yield from pipeline_steps(step)
        else:
            yield step


def apply_step(step: Step, results: Sample, probs: Mapping[str, float]) -> Sample | None:
    """Run one step with the plan's probability where the plan names it.

    A ``prob`` of its own is 1 for the call. The sample's ``augmented`` gets the step's name if the plan gates it and
    the coin says yes.
    """
    name = step_name(step)
    if name not in probs:
        return step(results)
    if random.random() >= probs[name]:
        return results
    if not isinstance(step, StagedMix):  # which knows itself whether it mixed
        results['augmented'] = (*results.get('augmented', ()), name)
    if not hasattr(step, 'prob'):
        return step(results)
    own = step.prob
    step.prob = 1.0
    try:
        return step(results)
    finally:
        step.prob = own


class _OtherImages:
    """The images of a leaf dataset except one, through the steps before a mix, mixes left out."""

    def __init__(self, leaf: BaseDataset, but: int, steps: Sequence[Step], probs: Mapping[str, float]) -> None:
        self.leaf = leaf
        self.but = but
        self.steps = [step for step in steps if not isinstance(step, StagedMix)]
        self.probs = probs

    def __len__(self) -> int:
        return len(self.leaf) - 1

    def __getitem__(self, index: int) -> Sample | None:
        results: Sample | None = self.leaf.get_data_info(index + (index >= self.but))
        for step in self.steps:
            if results is None:
                return None
            results = apply_step(step, results, self.probs)
        return results


@DATASETS.register_module()
class StagedDataset(Dataset):
    """Runs the pipeline of a dataset with each stage's probabilities and each sample's own randomness.

    Indexed by a :class:`SampleIndex`, which brings stage and seed with it, so persistent workers need no word from the
    parent and a resumed run needs no random state. A plain int stands for stage 0, epoch 0 and seed 0. ``random``,
    ``numpy.random`` and torch's CPU generator are seeded for the sample and put back after it; transforms with another
    source of randomness are not covered. A sample whose pipeline gives None is replaced by another.

    ``results['augmented']`` tells the names of the steps that the plan or a :class:`StagedMix` applied, for the
    ``meta_keys`` of PackDetInputs. Mixing steps take the size of the pipeline's Letterbox, whatever they say.

    Args:
        dataset: config or built: one that loads files as mmengine's BaseDataset (CocoDataset, XMLDataset, ...), or
            ConcatDataset, RepeatDataset, ClassBalancedDataset around such.
        stage_probs: one mapping a stage, step name -> probability; steps not named run as the pipeline says. Default
            (): every stage as the pipeline says.
        max_refetch: samples tried in place of one whose pipeline gives None. Default 15.
        old: built: old images, whose indices follow those of the dataset, which they do not lengthen. Their
            samples say ``kept`` (True) and ``kept_index`` in their metainfo. Default None.

    Raises:
        UserError: (a ValueError) for other datasets, a name that is no step's, a probability outside of 0..1, or a
            named step whose own ``prob`` is no number.
    """

    def __init__(self, dataset: Mapping[str, Any] | Any, stage_probs: Sequence[Mapping[str, float]] = (),
                 max_refetch: int = 15, old: BaseDataset | ConcatDataset | None = None) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.old = old
        self.stage_probs = tuple(dict(probs) for probs in stage_probs)
        self.max_refetch = max_refetch
        steps: list[Step] = []
        for leaf in self.leaves:
            own = list(pipeline_steps(leaf.pipeline))
            scale = next((step.scale for step in own if isinstance(step, Letterbox)), None)
            for step in own:
                if scale is not None and isinstance(step, StagedMix):
                    step.fit(scale)
                elif isinstance(step, LoadReadableImage):
                    step.pictures = len(leaf)
            steps += own
        for stage, probs in enumerate(self.stage_probs):
            for name, prob in probs.items():
                _check_gate(stage, name, prob, steps)

    @property
    def leaves(self) -> list[BaseDataset]:
        """The datasets inside the wrappers, those of old images last."""
        return [*_leaves(self.dataset), *([] if self.old is None else _leaves(self.old))]

    def __getattr__(self, name: str) -> Any:
        """Everything else is the inner dataset's; not the special methods that copying and pickling look for."""
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.dataset, name)

    def get_cat_ids(self, index: int) -> list[int]:
        """Labels of one image; ConcatDataset itself cannot tell them."""
        leaf, position = locate_sample(self.dataset, index)
        return leaf.get_cat_ids(position)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """One sample as the pipeline gives it, the same for the same (seed, epoch, index, stage).

        Raises:
            IndexError: outside of the dataset.
            UserError: if neither this sample nor those tried in its place come through the pipeline, or the stage has
                no probabilities.
        """
        position = int(index) + (len(self) if index < 0 else 0)
        old = position - len(self)
        if self.old is not None and 0 <= old < len(self.old):
            return self._old(old, index)
        if not 0 <= position < len(self):
            raise IndexError(f'index {int(index)} of a dataset of {len(self)}')
        sample = index if isinstance(index, SampleIndex) else SampleIndex(position, 0, 0, sample_seed(0, 0, position))
        probs = self._probs(sample.stage)
        with sample_randomness(sample.seed):
            for _ in range(self.max_refetch + 1):
                results = self._load(position, probs)
                if results is not None:
                    return results
                position = random.randrange(len(self))
        raise UserError(f'StagedDataset: sample {int(index)} and {self.max_refetch} tried in its place were dropped by '
                        'the pipeline; FilterAnnotations, for one, keeps images without boxes if keep_empty=False')

    def random_step(self, stage: int) -> str | None:
        """The first step of the pipelines that gives a sample other contents each time in a stage, None if none does.

        Tried on the first image of each dataset, by whether the step draws random numbers.
        """
        probs = self._probs(stage)
        for leaf in filter(len, self.leaves):
            results: Sample | None = {**leaf.get_data_info(0), 'augmented': ()}
            for step in pipeline_steps(leaf.pipeline):
                name = step_name(step)
                prob = probs.get(name, step.prob if isinstance(step, StagedMix) else 1)
                if results is None or prob == 0:
                    continue
                if prob < 1 or isinstance(step, StagedMix):
                    return name
                with sample_randomness(0):
                    results, drawn = watched(step, results)
                if drawn:
                    return name
        return None

    def _old(self, position: int, index: int) -> Any:
        """A sample of an old image; one whose augmentation gives None is augmented anew, no other takes its place."""
        assert self.old is not None
        probs = self._probs(index.stage if isinstance(index, SampleIndex) else 0)
        with sample_randomness(index.seed if isinstance(index, SampleIndex) else sample_seed(0, 0, index)):
            for _ in range(self.max_refetch + 1):
                results = self._load(position, probs, self.old)
                if results is not None:
                    results['data_samples'].set_metainfo(dict(kept=True, kept_index=position))
                    return results
        raise UserError(f'the old image {self.old.get_data_info(position)["img_path"]} does not come through the '
                        'training pipeline; take it out of keep.images')

    def _probs(self, stage: int) -> Mapping[str, float]:
        if not self.stage_probs:
            return {}
        if not 0 <= stage < len(self.stage_probs):
            raise UserError(f'StagedDataset: stage {stage} has no probabilities, stage_probs has '
                            f'{len(self.stage_probs)} stages; give one mapping a stage')
        return self.stage_probs[stage]

    def _load(self, position: int, probs: Mapping[str, float], dataset: Any = None) -> Any:
        leaf, index = locate_sample(self.dataset if dataset is None else dataset, position)
        results: Sample | None = {**leaf.get_data_info(index), 'augmented': ()}
        steps = list(pipeline_steps(leaf.pipeline))
        for place, step in enumerate(steps):
            if results is None:
                return None
            if isinstance(step, StagedMix):
                results['mix_source'] = _OtherImages(leaf, index, steps[:place], probs)
            with step_in_a_line(steps, place, results.get('img_path')):
                results = apply_step(step, results, probs)
            if results is not None:
                results.pop('mix_source', None)
        return results


def _leaves(dataset: Any) -> Iterator[BaseDataset]:
    """The datasets inside the wrappers, refusing those that load samples in their own way: only pipelines run here."""
    if isinstance(dataset, ConcatDataset):
        for each in dataset.datasets:
            yield from _leaves(each)
    elif isinstance(dataset, (RepeatDataset, ClassBalancedDataset)):
        yield from _leaves(dataset.dataset)
    elif isinstance(dataset, BaseDataset) and type(dataset).prepare_data is BaseDataset.prepare_data \
            and type(dataset).__getitem__ is BaseDataset.__getitem__:
        yield dataset
    else:
        raise UserError(f'StagedDataset: cannot run the pipeline of a {type(dataset).__name__}; use a dataset of '
                        'images such as CocoDataset, or ConcatDataset, RepeatDataset, ClassBalancedDataset around it; '
                        'for MultiImageMixDataset put a StagedMix into the pipeline')


def locate_sample(dataset: Any, index: int) -> tuple[BaseDataset, int]:
    """The leaf dataset that holds a sample, and its index there."""
    while not isinstance(dataset, BaseDataset):
        found = dataset._get_ori_dataset_idx(index)
        if isinstance(dataset, ConcatDataset):
            dataset, index = dataset.datasets[found[0]], found[1]
        else:
            dataset, index = dataset.dataset, found
    return dataset, int(index)


def _check_gate(stage: int, name: str, prob: object, steps: Sequence[Step]) -> None:
    where = f'StagedDataset: stage {stage} sets {name!r} to {prob!r}'
    if not isinstance(prob, (int, float)) or isinstance(prob, bool) or not 0 <= prob <= 1:
        raise UserError(f'{where}; a probability from 0 to 1 is needed')
    named = [step for step in steps if step_name(step) == name]
    if not named:
        there = ', '.join(dict.fromkeys(map(step_name, steps))) or 'none'
        raise UserError(f'{where}, and no step of the pipeline has this name; the steps: {there}')
    for step in named:
        own = getattr(step, 'prob', 1.0)
        if not isinstance(own, (int, float)) or isinstance(own, bool):
            raise UserError(f'{where}, and its own prob is {own!r}; a plan can only replace a single number')
