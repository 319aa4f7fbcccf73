"""An index that carries the randomness of its sample."""
import copy
import pickle
import random

import numpy as np
import pytest
import torch

from mgdet_plugin.datasets import SampleIndex, sample_randomness, sample_seed


@pytest.mark.parametrize('through', [
    *(lambda index, protocol=protocol: pickle.loads(pickle.dumps(index, protocol)) for protocol in (2, 4, 5)),
    copy.copy, copy.deepcopy])
def test_survives_the_way_to_a_worker(through) -> None:
    index = through(SampleIndex(3, epoch=5, stage=1, seed=99))
    assert type(index) is SampleIndex and index == 3
    assert (index.epoch, index.stage, index.seed) == (5, 1, 99)


def test_is_an_int_to_all_who_index() -> None:
    index = SampleIndex(2, epoch=1, stage=0, seed=0)
    assert 'abcd'[index] == 'c' and np.arange(4)[index] == 2 and torch.arange(4)[index] == 2
    assert {2: 'x'}[index] == 'x' and type(index % 4) is int
    assert repr(index) == 'SampleIndex(2, epoch=1, stage=0, seed=0)'


def test_seeds_are_the_same_everywhere_and_differ_in_every_argument() -> None:
    assert sample_seed(0, 0, 0) == 2319392274  # as on any machine: a run resumed elsewhere goes on alike
    seeds = {sample_seed(seed, epoch, index) for seed in range(20) for epoch in range(20) for index in range(20)}
    assert len(seeds) == 8000 and all(0 <= seed < 2 ** 32 for seed in seeds)
    assert abs(np.mean(list(seeds)) / 2 ** 32 - 0.5) < 0.02
    assert sample_seed(1, 11, 1) != sample_seed(11, 1, 1) and sample_seed(-1, 0, 0) != sample_seed(1, 0, 0)


def draws() -> list[float]:
    """A number of each generator."""
    return [random.random(), np.random.rand(), torch.rand(()).item()]


def test_randomness_is_the_seeds_and_is_put_back() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws(), draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    got = [draws()]
    with sample_randomness(7):
        first = draws()
    with pytest.raises(ZeroDivisionError), sample_randomness(7):
        assert draws() == first
        _ = 1 / 0
    assert [*got, draws()] == list(expected)
    assert len({round(number, 4) for number in first}) == 3  # three generators, three streams
