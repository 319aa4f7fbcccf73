"""Which old pictures are trained on and which held out: the same everywhere, and spread by what is seen in them."""
import itertools
import random

import pytest
import torch
from mmengine.structures import InstanceData

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.memory import describe, split_held_out, spread


def held_out_names(names: list[str], share: float = 0.2) -> set[str]:
    trained, held_out = split_held_out(names, share)
    assert sorted(trained + held_out) == list(range(len(names)))
    return {names[index] for index in held_out}


def test_the_split_goes_by_names_alone() -> None:
    names = [f'{index}.jpg' for index in range(50)]
    held_out = held_out_names(names)
    assert len(held_out) == 10
    assert held_out_names(random.Random(0).sample(names, 50)) == held_out
    assert split_held_out(['a', 'b', 'c', 'd'], 0.5) == ([1, 2], [0, 3])  # on every machine
    for added in range(20):  # one more moves one at most
        assert len(held_out - held_out_names([*names, f'new{added}.jpg'])) <= 1
    assert held_out - held_out_names([*names, 'bad\udce9.jpg']) <= held_out


@pytest.mark.parametrize(('count', 'share', 'held_out'), [(2, 0.01, 1), (2, 0.99, 1), (5, 0.2, 1), (3, 0.0, 0)])
def test_each_part_has_a_picture(count: int, share: float, held_out: int) -> None:
    assert len(held_out_names(list(map(str, range(count))), share)) == held_out


def test_one_picture_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r'keep.held_out 0.2 of 1 picture leaves none to train on; give more pictures'):
        split_held_out(['a'], 0.2)


def test_a_picture_is_described_by_what_is_seen_in_it() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 31, 32], [5, 5, 69, 69], [0, 0, 96, 96], [0, 0, 96, 96]]
    found = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float), labels=torch.tensor([1, 1, 0, 2, 2]),
                         scores=torch.tensor([0.5, 0.25, 0.64, 0.8, 0.2]))
    assert describe(found, 3).tolist() == pytest.approx([0, 0.75 ** 0.5, 0, 0.8, 0, 0, 0, 0, 1])
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long), scores=torch.zeros(0))
    assert describe(nothing, 3).tolist() == [0] * 9


def test_pictures_are_spread() -> None:
    line = torch.tensor([[0.], [1], [4], [5], [10]])
    assert spread(line, 5) == [2, 4, 0, 1, 3]  # from the mean 4: 10 at 6, 0 at 4, and the first of 1 and 5, both at 1
    assert spread(line, 2) == [2, 4]
    copies = torch.zeros(4, 2)
    assert spread(copies, 4) == [0, 1, 2, 3]


def test_no_picture_is_further_from_a_chosen_one_than_twice_the_least_possible() -> None:
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    apart = torch.cdist(points, points)
    reached = apart[:, spread(points, 3)].amin(1).max()
    least = min(apart[:, list(each)].amin(1).max() for each in itertools.combinations(range(12), 3))
    assert least <= reached <= 2 * least


@pytest.mark.parametrize(('descriptions', 'count', 'message'), [
    (torch.zeros(3, 2), 4, 'from 1 to 3 pictures can be chosen, got 4'), (torch.zeros(3, 2), 0, 'got 0'),
    (torch.tensor([[0.], [float('nan')]]), 1, r'must be finite, got \[nan\]')])
def test_what_cannot_be_spread(descriptions: torch.Tensor, count: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spread(descriptions, count)
