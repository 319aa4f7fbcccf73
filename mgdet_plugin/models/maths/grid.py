"""The cells of all levels as one row, so that nothing downstream needs a loop over levels.

Shapes: B images, L levels, H x W cells of a level, N cells over all levels (coarse to fine, rows, columns),
D = 5 + A + C channels.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError


def anchors_tensor(anchors: Sequence[Sequence[Sequence[float]]], strides: Sequence[int]) -> Tensor:
    """Anchors of a config, for each level the (width, height) of its anchors in pixels, as a tensor (L, A, 2).

    Raises:
        UserError: If levels do not match or differ in their number of anchors, or a size is not positive.
    """
    if len(anchors) != len(strides):
        raise UserError(f'anchors and strides must have one entry a level, got {len(anchors)} and {len(strides)}')
    if len({len(level) for level in anchors}) != 1:
        raise UserError('anchors must hold the same number of (width, height) pairs a level, got '
                        f'{[len(level) for level in anchors]}')
    sizes = torch.tensor(anchors, dtype=torch.float32)
    if sizes.dim() != 3 or sizes.shape[-1] != 2 or not bool((sizes > 0).all()):
        raise UserError(f'anchors must be positive (width, height) pairs in pixels, got {anchors}')
    return sizes


def flatten_maps(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, D, H_l, W_l) of all levels -> one tensor (B, N, D) in float32.

    Float32 because exp() of a size and sums over a batch leave the range of half precision.
    """
    return torch.cat([level.float().flatten(2).transpose(1, 2) for level in maps], 1)


@dataclass(frozen=True)
class CellGrid:
    """Place of every cell.

    Attributes:
        level: (N,) index of the cell's level.
        col: (N,) column of the cell in its level.
        row: (N,) row of the cell in its level.
        stride: (N,) side of the cell in pixels.
        map_sizes: (H, W) of each level in cells.
    """
    level: Tensor
    col: Tensor
    row: Tensor
    stride: Tensor
    map_sizes: tuple[tuple[int, int], ...]

    @classmethod
    def build(cls, map_sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> CellGrid:
        """Grid of maps whose (H, W) in cells are given for each level, with its stride in pixels."""
        levels, rows, cols = [], [], []
        for index, (height, width) in enumerate(map_sizes):
            rows.append(torch.arange(height, device=device).repeat_interleave(width))
            cols.append(torch.arange(width, device=device).repeat(height))
            levels.append(torch.full((height * width,), index, device=device))
        level = torch.cat(levels)
        return cls(level, torch.cat(cols), torch.cat(rows), torch.tensor(strides, device=device)[level],
                   tuple((int(height), int(width)) for height, width in map_sizes))

    @property
    def num_cells(self) -> int:
        """N, the number of cells over all levels."""
        return self.level.numel()

    @property
    def level_starts(self) -> list[int]:
        """Index of each level's first cell."""
        return [0, *accumulate(height * width for height, width in self.map_sizes[:-1])]
