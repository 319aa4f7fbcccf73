"""Which cells predict which object.

Shapes: B images, L levels, N cells over all levels, A anchors, C classes, G boxes of the whole batch,
K = 9 G claims, P positive cells.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.grid import CellGrid, anchors_tensor
from mgdet_plugin.models.maths.overlaps import centred_overlap

MIN_SIZE_RATIO = 1e-3
CELLS_GUARANTEED = 3
BLOCK = 9  # cells around an object's centre, column by column as in the reference


@dataclass(frozen=True)
class MultiGridTargets:
    """Sparse targets: one entry a positive cell.

    Attributes:
        image: (P,) image of the batch.
        cell: (P,) index among the N cells.
        anchor: (P,) anchor of the cell's level the object fits best.
        xy: (P, 2) centre of the object from the cell's corner, in cells, in [-1, 2).
        wh: (P, 2) log of the object's size over its anchor's.
        label: (P,) class.
        box: (P, 4) the object in input pixels.
        gt: (P,) index of the object among the G boxes of the batch (those of zero area counted, never assigned).
        num_images: B.
        num_anchors: A.
        grid: Places of the N cells.
    """
    image: Tensor
    cell: Tensor
    anchor: Tensor
    xy: Tensor
    wh: Tensor
    label: Tensor
    box: Tensor
    gt: Tensor
    num_images: int
    num_anchors: int
    grid: CellGrid

    def dense(self, num_classes: int) -> list[Tensor]:
        """The targets as maps, in the layout Keras trains on, with C classes.

        Returns:
            Per level, coarse first, (B, H, W, 5 + A + C): xy, wh, objectness 1, one-hot anchor, one-hot class; zero
            elsewhere.
        """
        cells = self.xy.new_zeros(self.num_images, self.grid.num_cells, 5 + self.num_anchors + num_classes)
        anchor = torch.nn.functional.one_hot(self.anchor, self.num_anchors)
        label = torch.nn.functional.one_hot(self.label, num_classes)
        ones = torch.ones_like(self.xy[:, :1])
        cells[self.image, self.cell] = torch.cat((self.xy, self.wh, ones, anchor.to(ones), label.to(ones)), 1)
        sizes = [height * width for height, width in self.grid.map_sizes]
        return [
            level.view(self.num_images, height, width, -1)
            for level, (height, width) in zip(cells.split(sizes, 1), self.grid.map_sizes)
        ]


class _Claims(NamedTuple):
    """Each box's claim on each cell of its block, nine a box.

    Attributes:
        cell: (K,) index among the B N cells of the batch; B N where there is none to claim.
        number: (K,) how many cells the box has claimed up to here, this one counted.
    """
    cell: Tensor
    number: Tensor


@TASK_UTILS.register_module()
class MultiGridAssigner:
    """Assign each object to the 3x3 block of cells around its centre.

    1. The anchor of highest IoL over all levels, box and anchor on one centre, gives level and anchor (the
       first on ties).
    2. The cell of the centre and its eight neighbours, inside the map, claim the object.
    3. A cell claimed by several objects goes to one of them by the ``conflict`` rule.

    Boxes of zero or negative size, or with a coordinate that is no number, are skipped.

    Args:
        anchors: Per level, coarse first, (width, height) of each anchor in pixels.
        strides: Stride of each level in pixels.
        conflict: 'reference': boxes in order, cells column by column, a taken cell is taken over only while the
            new box holds fewer than three cells (the rule model5 was trained with). 'nearest': the object whose
            centre is nearest to the cell's centre, the smaller object, then the earlier one on ties; batched.

    Raises:
        UserError: If levels do not match or the rule is unknown.
    """

    def __init__(self, anchors: Sequence[Sequence[Sequence[float]]], strides: Sequence[int],
                 conflict: str = 'reference') -> None:
        if conflict not in ('reference', 'nearest'):
            raise UserError(f"conflict must be 'reference' or 'nearest', got '{conflict}'")
        self.anchors = anchors_tensor(anchors, strides)
        self.strides = tuple(strides)
        self.conflict = conflict

    def assign(self, batch_gt_instances: Sequence[InstanceData], map_sizes: Sequence[tuple[int, int]],
               grid: CellGrid | None = None) -> MultiGridTargets:
        """Assign the objects of a batch; the sparse targets are ordered by image and cell.

        Args:
            batch_gt_instances: Per image ``bboxes`` (G_i, 4) in input pixels (x1, y1, x2, y2) and ``labels`` (G_i,).
            map_sizes: (H, W) of each level in cells.
            grid: The places of their cells, where the caller has them.
        """
        boxes, labels, image = gather_instances(batch_gt_instances)
        grid = grid or CellGrid.build(map_sizes, self.strides, boxes.device)
        low, high = boxes[:, :2], boxes[:, 2:]
        usable = ((high > low) & (low > -math.inf) & (high < math.inf)).all(1)
        boxes = boxes.where(usable[:, None], boxes.new_zeros(()))
        level, anchor = self.match_anchors(boxes)
        stride = torch.tensor(self.strides, device=boxes.device).index_select(0, level)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride[:, None]
        num_cells = len(batch_gt_instances) * grid.num_cells
        claims = self._claims(centre, level, image, usable, num_cells, grid)
        winners = (self._nearest(claims, boxes, centre, num_cells, grid) if self.conflict == 'nearest' else
                   self._reference(claims, num_cells))
        gt = winners.div(BLOCK, rounding_mode='floor')
        image = image.index_select(0, gt)
        cell = claims.cell.index_select(0, winners) - image * grid.num_cells
        xy, wh, box = self._compared(boxes, centre, level, anchor, gt, cell, grid)
        return MultiGridTargets(image, cell, anchor.index_select(0, gt), xy, wh, labels.index_select(0, gt), box, gt,
                                len(batch_gt_instances), self.anchors.shape[1], grid)

    def match_anchors(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Level (G,) and anchor (G,) of highest IoL for boxes (G, 4); the first on ties, never rounded."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        best = centred_overlap(sizes[:, None], self.anchors.to(boxes).flatten(0, 1)[None]).argmax(1)  # of (G, L A)
        level = best.div(self.anchors.shape[1], rounding_mode='floor')
        return level, best - level * self.anchors.shape[1]

    @staticmethod
    def _claims(centre: Tensor, level: Tensor, image: Tensor, usable: Tensor, num_cells: int,
                grid: CellGrid) -> _Claims:
        """Claims of all boxes in order, by their centres (G, 2) in cells of their level."""
        levels = torch.tensor([(width, height, start) for (height, width), start in
                               zip(grid.map_sizes, grid.level_starts)], device=level.device).index_select(0, level)
        near = centre.floor().long()[:, None] + torch.arange(-1, 2, device=level.device)[:, None]  # (G, 3, 2)
        fits = (near >= 0) & (near < levels[:, None, :2]) & usable[:, None, None]
        inside = (fits[:, :, None, 0] & fits[:, None, :, 1]).flatten(1)  # (G, 9), column by column
        rows = (image * grid.num_cells + levels[:, 2])[:, None] + near[:, :, 1] * levels[:, :1]  # (G, 3)
        cell = (near[:, :, None, 0] + rows[:, None]).flatten(1)
        return _Claims(cell.where(inside, cell.new_tensor(num_cells)).flatten(), inside.cumsum(1).flatten())

    @staticmethod
    def _nearest(claims: _Claims, boxes: Tensor, centre: Tensor, num_cells: int, grid: CellGrid) -> Tensor:
        """Indices of the claims that win: per cell the nearest, then the smallest, then the earliest object."""
        claim = (claims.cell < num_cells).nonzero().squeeze(1)
        cell, gt = claims.cell[claim], claim.div(BLOCK, rounding_mode='floor')
        place = cell % grid.num_cells
        distance = (centre[gt] - torch.stack((grid.col[place], grid.row[place]), 1) - 0.5).square().sum(1)
        size = boxes[:, 2:] - boxes[:, :2]
        order = (size[:, 0] * size[:, 1])[gt].argsort(stable=True)
        for key in (distance, cell):
            order = order[key[order].argsort(stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = cell[order].diff() != 0
        return claim[order[first]]

    @staticmethod
    def _reference(claims: _Claims, num_cells: int) -> Tensor:
        """Indices of the claims that win by the reference's rule.

        A claim succeeds on a free cell, or while its object has succeeded fewer than three times: so the first on each
        cell and the first three of each object, however the others end, and a cell's last success keeps it.
        """
        place = torch.arange(len(claims.cell), device=claims.cell.device)
        first = place.new_full((num_cells + 1, ), len(place)).scatter_reduce_(0, claims.cell, place, 'amin')
        succeeds = (first.index_select(0, claims.cell) == place) | (claims.number <= CELLS_GUARANTEED)
        taken = claims.cell.where(succeeds, place.new_tensor(num_cells))
        last = place.new_full((num_cells + 1, ), -1).scatter_reduce_(0, taken, place, 'amax')[:num_cells]
        return last.masked_select(last >= 0)

    def _compared(self, boxes: Tensor, centre: Tensor, level: Tensor, anchor: Tensor, gt: Tensor, cell: Tensor,
                  grid: CellGrid) -> tuple[Tensor, Tensor, Tensor]:
        """xy (P, 2), wh (P, 2) and box (P, 4) of the positive cells."""
        sizes = self.anchors.to(boxes).flatten(0, 1).index_select(0, level * self.anchors.shape[1] + anchor)
        wh = ((boxes[:, 2:] - boxes[:, :2]) / sizes).clamp_(min=MIN_SIZE_RATIO).log_()
        box, centre, wh = torch.cat((boxes, centre, wh), 1).index_select(0, gt).split((4, 2, 2), 1)
        corner = torch.stack((grid.col.index_select(0, cell), grid.row.index_select(0, cell)), 1)
        return centre - corner, wh, box


def gather_instances(batch_gt_instances: Sequence[InstanceData]) -> tuple[Tensor, Tensor, Tensor]:
    """Objects of a batch in one row: boxes (G, 4) float32, labels (G,), image (G,)."""
    boxes = torch.cat([get_box_tensor(instances.bboxes).float().reshape(-1, 4) for instances in batch_gt_instances])
    labels = torch.cat([instances.labels.reshape(-1).long() for instances in batch_gt_instances])
    image = torch.cat([labels.new_full((len(instances.bboxes), ), index)
                       for index, instances in enumerate(batch_gt_instances)])
    return boxes, labels, image
