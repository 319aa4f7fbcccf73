"""Cells of all levels in a row, and anchors that are refused."""
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.grid import CellGrid, anchors_tensor, flatten_maps

CPU = torch.device('cpu')


def test_cells_lie_coarse_to_fine_row_by_row():
    grid = CellGrid.build([(1, 2), (2, 3)], (16, 8), CPU)
    assert grid.level.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert grid.row.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert grid.col.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]
    assert grid.stride.tolist() == [16, 16, 8, 8, 8, 8, 8, 8]
    assert (grid.map_sizes, grid.num_cells, list(grid.level_starts)) == (((1, 2), (2, 3)), 8, [0, 2])


def test_maps_are_flattened_as_the_cells_lie():
    maps = [torch.arange(4.0).reshape(1, 2, 1, 2).half(), 10 + torch.arange(12.0).reshape(1, 2, 2, 3)]
    flat = flatten_maps(maps)
    assert flat.dtype == torch.float32
    assert flat.tolist() == [[[0, 2], [1, 3], *([10 + cell, 16 + cell] for cell in range(6))]]


def test_anchors_are_as_given():
    given = [[(4, 5), (6, 7)], [(1, 2), (2, 3)]]
    assert anchors_tensor(given, (16, 8)).tolist() == [[[4, 5], [6, 7]], [[1, 2], [2, 3]]]


@pytest.mark.parametrize(('anchors', 'line'), [
    ([[(1, 2)]], 'anchors and strides must have one entry a level, got 1 and 2'),
    ([[(1, 2)], [(1, 2), (3, 4)]], 'anchors must hold the same number of (width, height) pairs a level, got [1, 2]'),
    ([[(1, 2)], [(3, 0)]], 'anchors must be positive (width, height) pairs in pixels, got [[(1, 2)], [(3, 0)]]'),
    ([[(1, 2, 3)], [(3, 4, 5)]], 'anchors must be positive (width, height) pairs in pixels, got [[(1, 2, 3)], [(3, 4, '
     '5)]]'), ([[1, 2], [3, 4]], 'anchors must be positive (width, height) pairs in pixels, got [[1, 2], [3, 4]]')])
def test_anchors_that_make_no_sense(anchors, line):
    with pytest.raises(UserError) as caught:
        anchors_tensor(anchors, (16, 8))
    assert str(caught.value) == line
