"""Cells, anchors and decoded targets of samples whose numbers are typed in."""
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mgdet_plugin.models.multigrid_head import MultiGridHead
from mgdet_plugin.prepare.batches.assigned_objects import assigned_objects

ANCHORS = [[(40, 40), (60, 30)], [(20, 20), (30, 12)], [(10, 10), (6, 12)]]


@pytest.fixture
def head():
    """Three classes, two anchors a level."""
    return MultiGridHead(3, (8, 8, 8), ANCHORS, (32, 16, 8), bridge_channels=(8, 8, 8))


def sample(boxes, labels, ignored=()):
    corners, regions = (torch.tensor(each).float().reshape(-1, 4) for each in (boxes, ignored))
    return DetDataSample(gt_instances=InstanceData(bboxes=corners, labels=torch.tensor(labels).long()),
                         ignored_instances=InstanceData(bboxes=regions))


def test_an_object_has_the_block_around_its_centre(head):
    """A box of 20 x 20 at stride 16: its centre (30, 40) lies in column 1, row 2."""
    seen = assigned_objects(sample([[20, 30, 40, 50]], [2], [[1, 2, 3, 4]]), (96, 96), head)
    assert sorted(seen.cells[:, :2].tolist()) == [[x, y] for x in (0, 16, 32) for y in (16, 32, 48)]
    assert (seen.cells[:, 2:] - seen.cells[:, :2] == 16).all() and seen.owner.tolist() == [0] * 9
    assert seen.anchors.tolist() == [[20, 30, 40, 50]] and seen.ignored.tolist() == [[1, 2, 3, 4]]
    torch.testing.assert_close(seen.decoded, torch.tensor([[20.0, 30, 40, 50]] * 9), atol=1e-3, rtol=0)
    assert seen.errors.max() < 1e-3 and not seen.wrong.any() and seen.without_cell.tolist() == [False]


def test_every_level_anchor_and_class_decodes_to_its_object(head):
    """One box an anchor, not of its size, each in a class; the anchor lies on the box's centre."""
    boxes = [[10, 10, 54, 48], [100, 20, 158, 52], [30, 100, 48, 121], [90, 110, 121, 121], [20, 160, 29, 171],
             [100, 160, 107, 171]]
    seen = assigned_objects(sample(boxes, [0, 1, 2, 0, 1, 2]), (192, 192), head)
    assert seen.errors.max() < 1e-3 and not seen.wrong.any() and set(seen.owner.tolist()) == set(range(6))
    sizes = (seen.anchors[:, 2:] - seen.anchors[:, :2]).tolist()
    assert sizes == [[40, 40], [60, 30], [20, 20], [30, 12], [10, 10], [6, 12]]
    assert seen.anchors[0].tolist() == [12, 9, 52, 49]


def test_a_coder_that_is_not_the_inverse_is_told(head):
    head.bbox_coder.xy_scale = 0.3
    seen = assigned_objects(sample([[20, 30, 40, 50]], [2]), (96, 96), head)
    assert seen.errors.max() > 0.5


def test_objects_on_one_centre_leave_one_without_cells(head):
    head.assigner.conflict = 'nearest'
    seen = assigned_objects(sample([[20, 30, 40, 50], [20, 30, 40, 50]], [0, 1]), (96, 96), head)
    assert seen.without_cell.tolist() == [False, True] and len(seen.owner) == 9


@pytest.mark.parametrize('other', [False, True])
def test_no_objects_and_other_heads(head, other):
    seen = assigned_objects(sample([[1, 2, 3, 4]], [1]) if other else sample([], []), (96, 96),
                            nn.Identity() if other else head)
    assert len(seen.boxes) == other and len(seen.cells) == len(seen.decoded) == len(seen.owner) == 0
