"""Overlap measures against numbers worked out by hand."""
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.overlaps import box_area, centre_distance_penalty, centred_overlap, overlap

A = torch.tensor([0.0, 0.0, 10.0, 10.0])
HALF = torch.tensor([5.0, 0.0, 15.0, 10.0])  # shares 50 of 100 with A
INSIDE = torch.tensor([2.0, 2.0, 4.0, 7.0])  # area 10, inside A
APART = torch.tensor([20.0, 20.0, 30.0, 30.0])


@pytest.mark.parametrize(('box', 'kind', 'expected'), [
    (A, 'iou', 1.0), (A, 'iol', 1.0),
    (HALF, 'iou', 50 / 150), (HALF, 'iol', 50 / 100),
    (INSIDE, 'iou', 10 / 100), (INSIDE, 'iol', 10 / 100),
    (APART, 'iou', 0.0), (APART, 'iol', 0.0),
])
def test_worked_examples(box, kind, expected):
    assert overlap(A, box, kind).item() == pytest.approx(expected)
    assert overlap(box, A, kind).item() == pytest.approx(expected)


def test_every_pair_by_broadcasting():
    boxes = torch.stack((A, HALF, INSIDE))
    matrix = overlap(boxes[:, None], boxes[None], 'iou')
    assert matrix.shape == (3, 3)
    torch.testing.assert_close(matrix[0], torch.tensor([1.0, 1 / 3, 0.1]))


def test_empty_and_inverted_boxes_overlap_nothing():
    empty, inverted = torch.zeros(4), torch.tensor([5.0, 5.0, 1.0, 1.0])
    assert box_area(inverted) == 0
    assert overlap(empty, empty).item() == 0
    assert overlap(inverted, A).item() == 0


def test_distance_penalty():
    # Centres 5 apart, enclosing box 15 x 10.
    assert centre_distance_penalty(A, HALF).item() == pytest.approx(25 / 325)
    assert centre_distance_penalty(A, A).item() == 0


def test_sizes_on_one_centre():
    assert centred_overlap(torch.tensor([4.0, 10.0]), torch.tensor([8.0, 5.0])).item() == pytest.approx(20 / 40)


def test_unknown_measure():
    with pytest.raises(UserError, match="'giou'"):
        overlap(A, A, 'giou')


@pytest.mark.parametrize('kind', ['iou', 'iol'])
def test_centred_overlap_is_that_of_boxes_on_one_centre_to_the_bit(kind):
    draw = torch.Generator().manual_seed(0)
    sizes, others = (torch.rand(count, 2, generator=draw).pow(4) * 600 - 1 for count in (300, 9))
    boxes, other_boxes = (torch.cat((-each / 2, each / 2), 1) for each in (sizes, others))
    assert torch.equal(centred_overlap(sizes[:, None], others[None], kind), overlap(boxes[:, None], other_boxes, kind))
