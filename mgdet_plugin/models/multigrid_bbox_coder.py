"""Boxes to and from the raw channels of a prediction map.

Shapes: B images, L levels, N cells over all levels, A anchors, C classes, D = 5 + A + C, P boxes.
Channels of a cell: tx, ty, tw, th, objectness logit, A anchor logits, C class logits.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.task_modules.coders import BaseBBoxCoder
from mmdet.registry import TASK_UTILS
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.grid import CellGrid, anchors_tensor, flatten_maps

# exp() beyond this leaves any image; without a bound one wild logit makes Inf, and Inf - Inf in an overlap NaN.
MAX_LOG_SIZE = 12.0
SCORE_FACTORS = ('objectness', 'anchor', 'class')
ANCHOR_USES = ('likely', 'expected')


class CellFields(NamedTuple):
    """The channels of cells by meaning: xy (..., 2), wh (..., 2), objectness (...), anchor (..., A), cls (..., C)."""
    xy: Tensor
    wh: Tensor
    objectness: Tensor
    anchor: Tensor
    cls: Tensor


def split_fields(cells: Tensor, num_anchors: int) -> CellFields:
    """Split channels (..., 5 + A + C) by meaning; views, nothing is copied."""
    return CellFields(cells[..., 0:2], cells[..., 2:4], cells[..., 4], cells[..., 5:5 + num_anchors],
                      cells[..., 5 + num_anchors:])


def activate_xy(raw: Tensor, xy_scale: float) -> Tensor:
    """Raw x or y -> offset from the cell's corner in cells: ``tanh(s t) + sigmoid(s t)``, in (-1, 2)."""
    scaled = raw * xy_scale
    return scaled.tanh() + scaled.sigmoid()


def invert_xy(offset: Tensor, xy_scale: float, steps: int = 60) -> Tensor:
    """Inverse of :func:`activate_xy` by bisection, to about 1e-6 cells inside (-0.999, 1.999).

    Args:
        offset: Offsets from the cell's corner in cells; outside of (-1, 2) they give the raw value of its end.
        xy_scale: The s of the activation.
        steps: Halvings of the bracket.
    """
    low, high = torch.full_like(offset, -16.0), torch.full_like(offset, 16.0)
    for _ in range(steps):
        middle = (low + high) / 2
        above = activate_xy(middle, 1.0) > offset
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2 / xy_scale


@TASK_UTILS.register_module()
class MultiGridBBoxCoder(BaseBBoxCoder):
    """Coder of MultiGridDet: a cell reaches from one cell before itself to one cell after.

    ``xy = (tanh(s t) + sigmoid(s t) + cell) * stride`` and ``wh = anchor * exp(t)``, in input pixels.

    Args:
        anchors: Per level, coarse first, (width, height) of each anchor in pixels.
        strides: Stride of each level in pixels.
        xy_scale: The s of the xy activation.
        use_softmax: Anchor and class probabilities by softmax (True) or by sigmoid (older weights).
        score_factors: What a score is the product of, out of 'objectness', 'anchor' and 'class' (the highest
            probability of the cell's anchors or classes).
        anchor_use: The size a cell's tw and th are relative to. 'likely': its most likely anchor (what imported
            weights were trained with). 'expected': the mean of the level's anchors by their probabilities, in log
            sizes, so that a cell between two anchors does not jump from one to the other; needs a loss on boxes
            (``iou_loss``).

    Raises:
        UserError: If levels do not match, xy_scale is not positive, a factor or a use is unknown.
    """

    def __init__(self, anchors: Sequence[Sequence[Sequence[float]]], strides: Sequence[int], xy_scale: float = 0.15,
                 use_softmax: bool = True, score_factors: Sequence[str] = SCORE_FACTORS,
                 anchor_use: str = 'likely') -> None:
        super().__init__()
        if xy_scale <= 0:
            raise UserError(f'xy_scale must be positive, got {xy_scale}')
        if anchor_use not in ANCHOR_USES:
            raise UserError(f"anchor_use must be one of {ANCHOR_USES}, got '{anchor_use}'")
        if not score_factors or any(name not in SCORE_FACTORS for name in score_factors):
            raise UserError(f'score_factors must be one or more of {SCORE_FACTORS}, got {tuple(score_factors)}')
        self.anchors = anchors_tensor(anchors, strides)
        self.strides = tuple(strides)
        self.anchor_use = anchor_use
        self.xy_scale = xy_scale
        self.use_softmax = use_softmax
        self.score_factors = tuple(score_factors)

    @property
    def num_anchors(self) -> int:
        """A, the anchors of a level."""
        return self.anchors.shape[1]

    def grid(self, maps: Sequence[Tensor]) -> CellGrid:
        """Cell grid of raw maps (B, D, H_l, W_l)."""
        return CellGrid.build([(level.shape[-2], level.shape[-1]) for level in maps], self.strides, maps[0].device)

    def decode_boxes(self, raw: Tensor, anchor_sizes: Tensor, cols: Tensor, rows: Tensor, strides: Tensor) -> Tensor:
        """Raw xy and wh of cells -> boxes (..., 4) in input pixels, not clipped; differentiable.

        Args:
            raw: (..., 4) tx, ty, tw, th.
            anchor_sizes: (..., 2) width and height in pixels of the anchor each cell uses.
            cols: (...) column of each cell.
            rows: (...) row of each cell.
            strides: (...) stride of each cell in pixels.
        """
        corner = torch.stack((cols, rows), -1).to(raw.dtype)
        centre = (activate_xy(raw[..., :2], self.xy_scale) + corner) * strides[..., None]
        half = anchor_sizes * raw[..., 2:4].clamp(max=MAX_LOG_SIZE).exp() / 2
        return torch.cat((centre - half, centre + half), -1)

    def decode_cells(self, cells: Tensor, grid: CellGrid) -> Tensor:
        """Boxes (B, N, 4) of raw channels (B, N, D), in input pixels, not clipped.

        Each cell has its most likely or the expected anchor.
        """
        logits = split_fields(cells, self.num_anchors).anchor
        if self.anchor_use == 'expected':
            sizes = self.expected_sizes(logits, grid.level)
        else:
            sizes = self.anchors.to(cells)[grid.level, logits.argmax(-1)]  # (B, N, 2)
        return self.decode_boxes(cells[..., :4], sizes, grid.col, grid.row, grid.stride)

    def expected_sizes(self, logits: Tensor, level: Tensor) -> Tensor:
        """Mean of the anchors by their probabilities, in log sizes; differentiable.

        Logits (..., M, A) of cells and the level of each (M,) -> widths and heights (..., M, 2) in pixels.
        """
        # of sigmoids: each over their sum
        chances = (logits if self.use_softmax else nn.functional.logsigmoid(logits)).softmax(-1)
        return (chances[..., None] * self.anchors.to(logits).log()[level]).sum(-2).exp()

    def probabilities(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness (B, N), anchor (B, N, A) and class (B, N, C) probabilities of raw channels (B, N, D)."""
        fields = split_fields(cells, self.num_anchors)
        if self.use_softmax:
            return fields.objectness.sigmoid(), fields.anchor.softmax(-1), fields.cls.softmax(-1)
        return fields.objectness.sigmoid(), fields.anchor.sigmoid(), fields.cls.sigmoid()

    def decode(self, maps: Sequence[Tensor],  # type: ignore[override]
               grid: CellGrid | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Decode raw maps (B, D, H_l, W_l) of each level, coarse to fine; ``grid`` is theirs where it is known.

        Returns:
            boxes (B, N, 4) in input pixels, not clipped; scores (B, N); class probabilities (B, N, C).
        """
        cells, grid = flatten_maps(maps), grid or self.grid(maps)
        objectness, anchor, cls = self.probabilities(cells)
        factors = dict(zip(SCORE_FACTORS, (objectness, anchor.amax(-1), cls.amax(-1))))
        scores = torch.stack([factors[name] for name in self.score_factors]).prod(0)
        return self.decode_cells(cells, grid), scores, cls

    def encode(self, cells: Tensor, gt_bboxes: Tensor, anchor_sizes: Tensor) -> Tensor:  # type: ignore[override]
        """Raw values (P, 4) tx, ty, tw, th that decode to given boxes; the inverse of :meth:`decode_boxes`.

        Args:
            cells: (P, 3) column, row and stride of the cell that predicts each box.
            gt_bboxes: (P, 4) boxes (x1, y1, x2, y2) in input pixels, their centres within reach of the cell.
            anchor_sizes: (P, 2) anchor of each box in pixels.
        """
        centre = (gt_bboxes[:, :2] + gt_bboxes[:, 2:]) / 2
        offset = centre / cells[:, 2:] - cells[:, :2]
        size = (gt_bboxes[:, 2:] - gt_bboxes[:, :2]) / anchor_sizes
        return torch.cat((invert_xy(offset, self.xy_scale), size.log()), -1)
