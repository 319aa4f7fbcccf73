"""Which cells predict which object.

Shapes: B images, L levels, N cells over all levels, A anchors, C classes, G boxes of the whole batch,
K = 9 G claims, P positive cells.
"""
from __future__ import annotations

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
# The block in the reference's order: column by column.
_BLOCK = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]


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
    """Each box's claim on each cell of its block: image, cell, gt (K,); distance to the cell's centre (K,)."""
    image: Tensor
    cell: Tensor
    gt: Tensor
    distance: Tensor

    def take(self, index: Tensor) -> _Claims:
        return _Claims(*(field[index] for field in self))


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

    def assign(self, batch_gt_instances: Sequence[InstanceData],
               map_sizes: Sequence[tuple[int, int]]) -> MultiGridTargets:
        """Assign the objects of a batch; the sparse targets are ordered by image and cell.

        Args:
            batch_gt_instances: Per image ``bboxes`` (G_i, 4) in input pixels (x1, y1, x2, y2) and ``labels`` (G_i,).
            map_sizes: (H, W) of each level in cells.
        """
        boxes, labels, image = gather_instances(batch_gt_instances)
        grid = CellGrid.build(map_sizes, self.strides, boxes.device)
        usable = torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = torch.where(usable[:, None], boxes, boxes.new_zeros(4))
        level, anchor = self.match_anchors(boxes)
        claims = self._claims(boxes, level, image, usable.nonzero().squeeze(1), grid)
        claims = claims.take(self._nearest(claims, boxes, grid) if self.conflict == 'nearest' else
                             self._reference(claims, grid))
        return self._targets(claims, boxes, labels, anchor, len(batch_gt_instances), grid)

    def match_anchors(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Level (G,) and anchor (G,) of highest IoL for boxes (G, 4); the first on ties, never rounded."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        overlaps = centred_overlap(sizes[:, None], self.anchors.to(boxes).flatten(0, 1)[None])  # (G, L * A)
        best = overlaps.argmax(1)
        return best.div(self.anchors.shape[1], rounding_mode='floor'), best % self.anchors.shape[1]

    def _claims(self, boxes: Tensor, level: Tensor, image: Tensor, usable: Tensor, grid: CellGrid) -> _Claims:
        """Claims of the usable boxes in order, nine a box less those outside the map; U usable boxes."""
        level, image, boxes = level[usable], image[usable], boxes[usable]
        stride = torch.tensor(self.strides, device=boxes.device)[level]
        height, width = torch.tensor(grid.map_sizes, device=boxes.device)[level].unbind(1)
        col, row = ((boxes[:, axis] + boxes[:, axis + 2]) / 2 / stride for axis in (0, 1))  # (U,), in cells
        dx, dy = torch.tensor(_BLOCK, device=boxes.device).unbind(1)
        cols, rows = col.floor().long()[:, None] + dx, row.floor().long()[:, None] + dy  # (U, 9)
        inside = (cols >= 0) & (cols < width[:, None]) & (rows >= 0) & (rows < height[:, None])
        box = inside.nonzero()[:, 0]  # (K,)
        cell = (grid.level_starts[level][:, None] + rows * width[:, None] + cols)[inside]
        distance = (col[:, None] - cols - 0.5).square() + (row[:, None] - rows - 0.5).square()
        return _Claims(image[box], cell, usable[box], distance[inside])

    @staticmethod
    def _nearest(claims: _Claims, boxes: Tensor, grid: CellGrid) -> Tensor:
        """Indices of the claims that win: per cell the nearest, then the smallest, then the earliest object."""
        size = boxes[:, 2:] - boxes[:, :2]
        area = (size[:, 0] * size[:, 1])[claims.gt]
        order = area.argsort(stable=True)
        order = order[claims.distance[order].argsort(stable=True)]
        key = claims.image * grid.num_cells + claims.cell
        order = order[key[order].argsort(stable=True)]
        return order[_changes(key[order])]

    @staticmethod
    def _reference(claims: _Claims, grid: CellGrid) -> Tensor:
        """Indices of the claims that win by the reference's rule.

        A claim succeeds on a free cell, or while its object has succeeded fewer than three times: so the first on each
        cell and the first three of each object, however the others end, and a cell's last success keeps it.
        """
        key = claims.image * grid.num_cells + claims.cell
        order = key.argsort(stable=True)
        key, place = key[order], torch.arange(len(key), device=key.device)
        earlier = place - torch.where(_changes(claims.gt), place, 0).cummax(0).values  # claims of the same object
        succeeds = _changes(key) | (earlier[order] < CELLS_GUARANTEED)
        order, key = order[succeeds], key[succeeds]
        return order[_changes(key.flip(0)).flip(0)]

    def _targets(self, claims: _Claims, boxes: Tensor, labels: Tensor, anchor: Tensor, num_images: int,
                 grid: CellGrid) -> MultiGridTargets:
        box = boxes[claims.gt]
        corner = torch.stack((grid.col[claims.cell], grid.row[claims.cell]), 1)
        centre = (box[:, :2] + box[:, 2:]) / 2 / grid.stride[claims.cell][:, None]
        sizes = self.anchors.to(boxes)[grid.level[claims.cell], anchor[claims.gt]]
        wh = ((box[:, 2:] - box[:, :2]) / sizes).clamp(min=MIN_SIZE_RATIO).log()
        return MultiGridTargets(claims.image, claims.cell, anchor[claims.gt], centre - corner, wh, labels[claims.gt],
                                box, claims.gt, num_images, self.anchors.shape[1], grid)


def _changes(values: Tensor) -> Tensor:
    """(K,) whether a value differs from the one before it."""
    first = torch.ones_like(values, dtype=torch.bool)
    first[1:] = values[1:] != values[:-1]
    return first


def gather_instances(batch_gt_instances: Sequence[InstanceData]) -> tuple[Tensor, Tensor, Tensor]:
    """Objects of a batch in one row: boxes (G, 4) float32, labels (G,), image (G,)."""
    boxes = torch.cat([get_box_tensor(instances.bboxes).float().reshape(-1, 4) for instances in batch_gt_instances])
    labels = torch.cat([instances.labels.reshape(-1).long() for instances in batch_gt_instances])
    counts = torch.tensor([len(instances.bboxes) for instances in batch_gt_instances], device=boxes.device)
    image = torch.arange(len(batch_gt_instances), device=boxes.device).repeat_interleave(counts)
    return boxes, labels, image
