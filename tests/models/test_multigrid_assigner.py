"""Targets against the reference's, typed-in cases and a one-by-one statement of the nearest rule."""
import math

import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models import MultiGridAssigner
from tests.conftest import ANCHORS, SIZES_320, STRIDES, objects


def make_assigner(**fields):
    return MultiGridAssigner(ANCHORS, STRIDES, **fields)


def test_golden_targets(golden, golden_objects):
    dense = make_assigner().assign(golden_objects, SIZES_320).dense(20)
    for level, stride in zip(dense, STRIDES):
        expected = torch.from_numpy(golden[f'y_true_{stride}'])
        assert expected[..., 4].sum() > 50
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-5)


def test_a_grid_that_the_caller_has_is_taken(golden_objects):
    assigner = make_assigner()
    built = assigner.assign(golden_objects, SIZES_320)
    given = assigner.assign(golden_objects, SIZES_320, built.grid)
    assert given.grid is built.grid and torch.equal(given.cell, built.cell) and torch.equal(given.xy, built.xy)


def test_half_pixel_centre():
    # 56 x 112 at stride 16, centre (100.5, 60.5): 6.28125 and 3.78125 cells.
    box = [100.5 - 28, 60.5 - 56, 100.5 + 28, 60.5 + 56]
    dense = make_assigner().assign([objects([box], [1])], SIZES_320).dense(2)
    assert dense[0].abs().sum() == 0 and dense[2].abs().sum() == 0
    level = dense[1][0]
    assert level[..., 4].nonzero().tolist() == [[r, c] for r in (2, 3, 4) for c in (5, 6, 7)]
    torch.testing.assert_close(level[3, 6], torch.tensor([0.28125, 0.78125, 0, 0, 1, 0, 1, 0, 0, 1.0]))
    torch.testing.assert_close(level[2, 7, :2], torch.tensor([-0.71875, 1.78125]))


def test_map_that_is_not_square():
    # Centre (40, 90) on a 64 x 128 input: stride 8, column 5, row 11; the corner of the 8 x 16 map keeps all nine.
    dense = make_assigner().assign([objects([[35.5, 85, 44.5, 95]], [0])], [(4, 2), (8, 4), (16, 8)]).dense(1)
    assert dense[2][0, ..., 4].nonzero().tolist() == [[r, c] for r in (10, 11, 12) for c in (4, 5, 6)]


def test_block_is_cut_at_the_border():
    dense = make_assigner().assign([objects([[0, 0, 9, 10]], [0])], SIZES_320).dense(1)
    assert dense[2][0, ..., 4].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    torch.testing.assert_close(dense[2][0, 1, 1, :2], torch.tensor([4.5 / 8 - 1, 5 / 8 - 1]))


def test_reference_rule_gives_a_late_box_three_cells():
    # Two objects of one size and centre: the second finds every cell taken and takes the first three, column by column.
    box = [100, 100, 156, 212]
    targets = make_assigner().assign([objects([box, box], [0, 1])], SIZES_320)
    level = targets.dense(2)[1][0]
    second = (level[..., 9] == 1).nonzero().tolist()
    assert second == [[8, 7], [9, 7], [10, 7]]  # (row, column): the left column, top to bottom
    assert (level[..., 8] == 1).sum() == 6


def test_reference_rule_counts_free_cells_first():
    # The second block lies one column to the right. Its first column is taken: three cells are won, then in its
    # second column none, as it holds three; the third column is free.
    first, second = [100, 100, 156, 212], [116, 100, 172, 212]
    level = make_assigner().assign([objects([first, second], [0, 1])], SIZES_320).dense(2)[1][0]
    columns = {col for _, col in (level[..., 9] == 1).nonzero().tolist()}
    assert columns == {8, 10}
    assert (level[..., 9] == 1).sum() == 6 and (level[..., 8] == 1).sum() == 6


def nearest_one_by_one(batch, assigner, map_sizes):
    """The nearest rule, cell by cell: image, level, row, column -> object of the image."""
    owners = {}
    for image, instances in enumerate(batch):
        level, _ = assigner.match_anchors(instances.bboxes)
        for index, (x1, y1, x2, y2) in enumerate(instances.bboxes.tolist()):
            scale = int(level[index])
            cx, cy = (x1 + x2) / 2 / STRIDES[scale], (y1 + y2) / 2 / STRIDES[scale]
            for row in range(math.floor(cy) - 1, math.floor(cy) + 2):
                for col in range(math.floor(cx) - 1, math.floor(cx) + 2):
                    if not (0 <= row < map_sizes[scale][0] and 0 <= col < map_sizes[scale][1]):
                        continue
                    rank = ((cx - col - 0.5)**2 + (cy - row - 0.5)**2, (x2 - x1) * (y2 - y1), index)
                    key = (image, scale, row, col)
                    owners[key] = min(owners.get(key, (math.inf, )), rank)
    return {key: rank[2] for key, rank in owners.items()}


def test_nearest_rule(golden_objects):
    assigner = make_assigner(conflict='nearest')
    expected = nearest_one_by_one(golden_objects, assigner, SIZES_320)
    targets = assigner.assign(golden_objects, SIZES_320)
    first = torch.tensor([0] + [len(each.bboxes) for each in golden_objects]).cumsum(0)
    grid = targets.grid
    found = {(int(image), int(grid.level[cell]), int(grid.row[cell]), int(grid.col[cell])): int(gt - first[image])
             for image, cell, gt in zip(targets.image, targets.cell, targets.gt)}
    assert found == expected
    reference = make_assigner().assign(golden_objects, SIZES_320)
    assert not torch.equal(reference.gt, targets.gt)  # the two rules differ on these crowded images


def test_first_anchor_on_ties_and_no_rounding():
    assigner = make_assigner()
    level, anchor = assigner.match_anchors(torch.tensor([[0.0, 0, 40, 40], [0, 0, 112, 74]]))
    assert (level[1], anchor[1]) == (0, 0)
    overlaps = [min(40, w) * min(40, h) / max(1600, w * h) for scale in ANCHORS for w, h in scale]
    assert int(level[0] * 3 + anchor[0]) == overlaps.index(max(overlaps))


@pytest.mark.parametrize('conflict', ['reference', 'nearest'])
def test_empty_batches_and_degenerate_boxes(conflict):
    assigner = make_assigner(conflict=conflict)
    nothing = assigner.assign([objects([], []), objects([], [])], SIZES_320)
    assert nothing.image.numel() == 0
    assert [tuple(level.shape) for level in nothing.dense(3)] == [(2, 10, 10, 11), (2, 20, 20, 11), (2, 40, 40, 11)]
    bad = [[10, 10, 10, 30], [30, 30, 20, 20], [float('nan'), 0, 5, 5], [0, 0, float('inf'), 5], [50, 50, 60, 60]]
    targets = assigner.assign([objects(bad, [0, 0, 0, 0, 1])], SIZES_320)
    assert set(targets.gt.tolist()) == {4}
    assert all(torch.isfinite(level).all() for level in targets.dense(2))


def test_tiny_boxes_keep_a_finite_size():
    targets = make_assigner().assign([objects([[10, 10, 10.001, 10.001]], [0])], SIZES_320)
    torch.testing.assert_close(targets.wh, torch.full_like(targets.wh, math.log(1e-3)))


def test_bad_fields():
    with pytest.raises(UserError, match="'best'"):
        make_assigner(conflict='best')
    with pytest.raises(UserError, match='got 3 and 2'):
        MultiGridAssigner(ANCHORS, (32, 16))
