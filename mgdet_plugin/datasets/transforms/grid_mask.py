"""Grid mask: a picture under a grid of grey squares, so that no single part of an object is relied on."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from mgdet_plugin.common.errors import UserError, is_number, require

FILL = 128  # the letterbox's grey


@TRANSFORMS.register_module()
class GridMask(BaseTransform):
    """Cover a picture by squares on a grid (Chen et al., "GridMask Data Augmentation", 2020, arXiv 2001.04086).

    The period is drawn from a range, the grid is shifted and turned at random; each of its units keeps a share of its
    side and is covered in the rest. Boxes stay, as in the paper. A plan names it by its class:
    ``probs=dict(GridMask=0.1)``.

    Required and modified key: ``img`` (h, w, 3), 0 to 255. Draws from ``numpy.random``.

    Args:
        prob: Share of the pictures.
        period: Range of the period in shares of the shorter side; below the paper's, which is for pictures of one
            object.
        cover: Share of a period that a square's side is; 1 minus the paper's r.
        angle: The grid is turned by up to so many degrees either way.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(self, prob: float = 0.1, period: Sequence[float] = (0.15, 0.4), cover: float = 0.4,
                 angle: float = 45.0) -> None:
        require(is_number(prob) and 0 <= prob <= 1, 'GridMask: prob must be a number from 0 to 1', prob)
        require(is_number(cover) and 0 < cover < 1, 'GridMask: cover must be a number between 0 and 1', cover)
        require(is_number(angle) and 0 <= angle <= 180, 'GridMask: angle must be a number from 0 to 180', angle)
        if len(period) != 2 or not all(map(is_number, period)) or not 0 < period[0] <= period[1] <= 1:
            raise UserError(f'GridMask: period must be (low, high) with 0 < low <= high <= 1, got {period!r}')
        self.prob, self.period, self.cover, self.angle = float(prob), tuple(period), float(cover), float(angle)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Cover one sample, in place, or leave it as it is."""
        if np.random.random() < self.prob:
            image = results['img'].copy()
            height, width = image.shape[:2]
            period = max(2.0, np.random.uniform(self.period[0], self.period[1]) * min(height, width))
            shift = np.random.uniform(0, period, 2)
            turn = np.deg2rad(np.random.uniform(-self.angle, self.angle))
            image[covered((height, width), period, self.cover, shift, turn)] = FILL
            results['img'] = image
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(prob={self.prob}, period={self.period}, cover={self.cover}, '
                f'angle={self.angle})')


def covered(size: tuple[int, int], period: float, cover: float, shift: np.ndarray, turn: float) -> np.ndarray:
    """Pixels (h, w) bool under squares of side ``cover * period`` on a grid shifted (2,) and turned, in radians."""
    rows, columns = np.mgrid[:size[0], :size[1]].astype(np.float32)
    along = columns * np.cos(turn) + rows * np.sin(turn) + shift[0]
    across = rows * np.cos(turn) - columns * np.sin(turn) + shift[1]
    side = cover * period
    mask: np.ndarray = (along % period < side) & (across % period < side)
    return mask
