"""Terms of the loss against their formulas, written out number by number."""
import math

import pytest
import torch

from mgdet_plugin.models.maths import loss_terms
from mgdet_plugin.models.maths.loss_terms import (
    best_overlap,
    cell_weights,
    consensus_term,
    sigmoid_term,
    smooth_one_hot,
    softmax_term,
)

LOGITS = [[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]
LABELS = [2, 0]
WEIGHTS = [2.0, 3.0, 5.0]


def softmax(row):
    return [math.exp(each) / sum(map(math.exp, row)) for each in row]


@pytest.mark.parametrize('focal', [False, True])
@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_softmax_and_sigmoid_by_hand(smoothing, weights, focal):
    wanted, binary = [], []
    for row, label in zip(LOGITS, LABELS):
        target = [(1 - smoothing) * (index == label) + smoothing / 3 for index in range(3)]
        chance = softmax(row)
        term = -sum(one * math.log(other) for one, other in zip(target, chance)) * (
            (1 - chance[label])**2 if focal else 1)
        wanted.append(term * (weights[label] if weights else 1))
        own = 0.0
        for index, (one, logit) in enumerate(zip(target, row)):
            p, true = 1 / (1 + math.exp(-logit)), index == label
            column = -(one * math.log(p) + (1 - one) * math.log(1 - p))
            column *= ((1 - p if true else p)**2 * (0.25 if true else 0.75)) if focal else 1
            own += column * (weights[index] if weights else 1)
        binary.append(own)
    given = torch.tensor(LOGITS), torch.tensor(LABELS), smoothing, focal, weights and torch.tensor(weights)
    torch.testing.assert_close(softmax_term(*given), torch.tensor(wanted))
    torch.testing.assert_close(sigmoid_term(*given), torch.tensor(binary))


def test_smoothed_targets():
    assert smooth_one_hot(torch.tensor([1]), 4, 0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]


def test_cells_weigh_by_their_fit():
    """The best of an object weighs 1; of an object that none fits, all do."""
    fit, owner = torch.tensor([0.5, 0.25, 0.0, 0.0, 0.8]), torch.tensor([7, 7, 2, 2, 4])
    ratio = (0.25 + 1e-3) / (0.5 + 1e-3)
    torch.testing.assert_close(cell_weights(fit, owner, 2.0), torch.tensor([1, ratio**2, 1, 1, 1]))
    assert cell_weights(fit, owner, 0.0).tolist() == [1] * 5


def test_cells_of_an_object_agree():
    """Object 2 has two cells, object 0 one, object 1 none."""
    centres, sizes = torch.tensor([[1.0, 2], [3, 6], [9, 9]]), torch.tensor([[0.0, 1], [2, 1], [5, 5]])
    assert consensus_term(centres, sizes, torch.tensor([2, 2, 0]), 3).tolist() == [(1 + 4 + 1) / 2, (1 + 4 + 1) / 2, 0]
    assert consensus_term(centres[:1], sizes[:1], torch.tensor([0]), 1).tolist() == [0]


@pytest.mark.parametrize('at_once', [1, 5, 1 << 18])
def test_best_overlap_of_every_box(at_once, monkeypatch):
    """However many pairs are taken at once."""
    monkeypatch.setattr(loss_terms, 'PAIRS_AT_ONCE', at_once)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 0, 15, 10]]]).requires_grad_(True)
    objects = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 0, 0]]])
    found = best_overlap(boxes, objects, 'iou')
    assert found.tolist() == [pytest.approx([1, 0, 1 / 3])] and not found.requires_grad
    assert best_overlap(boxes, objects, 'iol').tolist() == [pytest.approx([1, 0, 0.5])]
    nothing = best_overlap(boxes, objects[:, :0], 'iou')
    assert nothing.shape == (1, 3) and not nothing.any()
    assert best_overlap(boxes[:, :0], objects, 'iou').shape == (1, 0)
