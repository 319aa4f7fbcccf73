"""An index that carries the randomness of its sample, so that no worker needs to be told anything else."""
from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class SampleIndex(int):
    """The index of a sample in an epoch: an int to every dataset and sampler, with what its augmentation depends on.

    Dataloader workers hold copies of the dataset; what changes while they live must come with the index. Arithmetic
    gives plain ints.

    Args:
        index: index of the sample in the dataset.
        epoch: the epoch it is drawn in, from 0.
        stage: the stage of the plan, from 0.
        seed: seed of this sample's randomness, 32 bits, see :func:`sample_seed`.
    """

    epoch: int
    stage: int
    seed: int

    def __new__(cls, index: int, epoch: int, stage: int, seed: int) -> SampleIndex:
        self = super().__new__(cls, index)
        self.epoch, self.stage, self.seed = epoch, stage, seed
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (int(self), self.epoch, self.stage, self.seed)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({int(self)}, epoch={self.epoch}, stage={self.stage}, seed={self.seed})'


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of a sample's randomness by seed of the run, epoch and index: 32 bits of a hash, the same everywhere."""
    digest = hashlib.blake2b(f'{int(seed)}/{int(epoch)}/{int(index)}'.encode(), digest_size=4).digest()
    return int.from_bytes(digest, 'little')


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Put ``random``, ``numpy.random`` and torch's CPU generator back afterwards to the states they are in."""
    python, numpy, generator = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(generator)


def watched(step: Callable[[Any], Any], given: Any) -> tuple[Any, bool]:
    """What a step makes of what it is given, and whether it draws from a generator of :func:`kept_randomness`."""

    def states() -> list[Any]:
        return [random.getstate(), [np.asarray(each).tolist() for each in np.random.get_state()],
                torch.random.get_rng_state().tolist()]

    before = states()
    made = step(given)
    return made, states() != before


@contextmanager
def sample_randomness(seed: int) -> Iterator[None]:
    """Seed the three generators for the block with 32 bits, then put their states back.

    They are seeded in different ways, since equal Mersenne twisters would repeat each other's numbers.
    """
    with kept_randomness():
        random.seed(seed)
        np.random.seed([seed, 1])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' generators too
        yield
