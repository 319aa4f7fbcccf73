"""Batches whose indices carry epoch, stage and seed; the place where the stages of a plan reach the workers."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mmdet.registry import DATA_SAMPLERS
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import BatchSampler

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.staged.sample_index import SampleIndex, sample_seed


@DATA_SAMPLERS.register_module()
class StagedBatchSampler(BatchSampler):
    """Batches of :class:`SampleIndex`, in the order of a sampler or of another batch sampler.

    Lives in the parent process; call :meth:`set_progress` before each epoch. Everything it does is a function of
    (seed, epoch, stage), so there is no state to restore.

    Args:
        sampler: yields the indices of an epoch; ``set_epoch`` and ``seed`` are set where it has them.
        batch_size: samples a batch.
        drop_last: whether a last, smaller batch is left out. Default False.
        seed: seed of the augmentation, see :meth:`set_seed`. Default 0.
        inner: config of a batch sampler that groups the indices, e.g. mmdet's AspectRatioBatchSampler; sampler, batch
            size and ``drop_last`` are given to it. Default None: batches in the sampler's order.
        batch_sizes: a batch size a stage, None for ``batch_size``. Default None: ``batch_size`` throughout.
        beside: number of old images that go with so many new ones, behind them in the batch; see :meth:`set_memory`.
            Default None: none.

    Raises:
        UserError: (a ValueError) for batch sizes that are not positive whole numbers, or an ``inner`` that names its
            own sampler or batch size.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool = False, seed: int = 0,
                 inner: Mapping[str, Any] | None = None, batch_sizes: Sequence[int | None] | None = None,
                 beside: Callable[[int], int] | None = None) -> None:
        for size in (batch_size, *(size for size in batch_sizes or () if size is not None)):
            if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
                raise UserError(f'StagedBatchSampler: a batch size must be a positive whole number, got {size!r}')
        for key in ('sampler', 'batch_size'):
            if key in (inner or {}):
                raise UserError(f'StagedBatchSampler: inner sets {key}={(inner or {})[key]!r}; leave it out, the '
                                "dataloader's is given to it")
        super().__init__(sampler, batch_size, drop_last)
        self.seed = seed
        self.inner = dict(inner) if inner else None
        self.batch_sizes = tuple(batch_sizes) if batch_sizes is not None else None
        self.beside = beside
        self.memory: tuple[tuple[int, ...], ...] = ()
        self.epoch = self.stage = 0
        self._skip = 0

    def set_seed(self, seed: int) -> None:
        """Set the seed of augmentation and, where it has one, of the sampler's order, the same on every rank.

        A resumed run takes its old one.
        """
        self.seed = seed
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed

    def set_memory(self, *groups: Sequence[int]) -> None:
        """Set the indices of the old images to draw from, as the dataset counts them; the same on every rank.

        Args:
            groups: None of them empty; they take turns.
        """
        self.memory = tuple(map(tuple, groups))

    def set_progress(self, epoch: int, stage: int, skip: int = 0) -> None:
        """Say where the run stands, before each epoch.

        Args:
            epoch: epoch, from 0.
            stage: stage of the plan, from 0.
            skip: batches to leave out at the start, to resume within an epoch; nothing of them is loaded. Holds until
                the next call: a dataloader with workers begins a pass twice. Default 0.

        Raises:
            ValueError: for negative numbers, or a stage without a batch size.
        """
        if min(epoch, stage, skip) < 0:
            raise ValueError('StagedBatchSampler: epoch, stage and skip must be 0 or more, got '
                             f'{epoch}, {stage}, {skip}')
        self._size(stage)
        self.epoch, self.stage, self._skip = epoch, stage, skip
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def batches_of(self, stage: int) -> int:
        """Number of batches of an epoch in a stage of the plan, from 0."""
        return len(self._batches(stage))

    def __len__(self) -> int:
        """Number of batches of a whole epoch in the current stage, those skipped included."""
        return self.batches_of(self.stage)

    def __iter__(self) -> Iterator[list[int]]:
        """One pass; no generator, so that progress is that of this moment."""
        seed, epoch, stage, skip = self.seed, self.epoch, self.stage, self._skip
        old = self._old_images()
        return ([*(SampleIndex(index, epoch, stage, sample_seed(seed, epoch, index)) for index in batch),
                 *(old(number, len(batch)) if old else ())]
                for number, batch in enumerate(islice(iter(self._batches(stage)), skip, None), skip))

    def _old_images(self) -> Callable[[int, int], list[SampleIndex]] | None:
        """What gives the old images of a batch, by its number in the epoch and how many new ones it has.

        The memory is gone through in a new order each time, all ranks together: each image is seen as often as any
        other. Where a pass through it stands follows from the number of the batch, so there is no state, and an image
        that comes twice in an epoch is augmented anew.
        """
        if self.beside is None or not self.memory:
            return None
        beside, groups, ranks, rank = self.beside, self.memory, get_world_size(), get_rank()
        seed, epoch, stage = self.seed, self.epoch, self.stage
        most = beside(self._size(stage))
        orders: dict[tuple[int, int], list[int]] = {}

        def draw(number: int, new: int) -> list[SampleIndex]:
            begin = (number * ranks + rank) * most
            found = []
            for place in range(begin, begin + min(most, beside(new))):
                drawn, which = divmod(place, len(groups))
                turn, position = divmod(drawn, len(groups[which]))
                if (which, turn) not in orders:
                    orders[which, turn] = random.Random(f'{seed}/{epoch}/{turn}').sample(
                        groups[which], len(groups[which]))
                found.append(SampleIndex(orders[which, turn][position], epoch, stage,
                                         sample_seed(seed, epoch, -1 - place)))
            return found

        return draw

    def _size(self, stage: int) -> int:
        if self.batch_sizes is None:
            return self.batch_size
        if stage >= len(self.batch_sizes):
            raise UserError(f'StagedBatchSampler: stage {stage} has no batch size, batch_sizes={self.batch_sizes}; '
                            'give one a stage')
        return self.batch_sizes[stage] or self.batch_size

    def _batches(self, stage: int) -> BatchSampler:
        """A fresh grouping of the indices: AspectRatioBatchSampler keeps what an abandoned pass left over."""
        fields: dict[str, Any] = dict(sampler=self.sampler, batch_size=self._size(stage), drop_last=self.drop_last)
        return DATA_SAMPLERS.build(dict(self.inner), default_args=fields) if self.inner else BatchSampler(**fields)
