"""Boxes that cannot be objects: what counts as one, and the transform that drops them from a sample."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import BaseBoxes, autocast_box_type
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.letterbox import LetterboxScale

MIN_SIZE = 1.0  # pixels; CocoDataset's own limit
_FAR = 1e9  # pixels: no picture reaches so far, and squares of such numbers leave float32


def degenerate_reason(box: Sequence[float], image_size: tuple[float, float] | None = None) -> str | None:
    """Why a box xyxy cannot be an object, None for a sound one; the rule of :class:`DropDegenerateBoxes` in words.

    ``image_size`` is (w, h); None leaves the image's edges out of it. All in pixels.
    """
    x1, y1, x2, y2 = box
    if not all(abs(value) < _FAR for value in box):
        return 'not a number, or beyond all pictures'
    if x2 <= x1 or y2 <= y1:
        return 'zero or negative size'
    if x2 - x1 < MIN_SIZE or y2 - y1 < MIN_SIZE:
        return f'smaller than {MIN_SIZE:g} pixel'
    if image_size is not None and (x1 >= image_size[0] or y1 >= image_size[1] or x2 <= 0 or y2 <= 0):
        return 'outside of its image'
    return None


def keep_boxes(results: dict[str, Any], keep: Tensor) -> None:
    """Keep the boxes of a sample that a mask (G,) bool names, in place, with their labels and flags."""
    if not keep.all():
        results['gt_bboxes'] = results['gt_bboxes'][keep]
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            if key in results:
                results[key] = results[key][keep.numpy()]


def _limits(results: Mapping[str, Any]) -> tuple[int, int]:
    """(h, w) of the picture the boxes are in; where it cannot be told, the larger of the original and the input."""
    shape, scale = tuple(results['img_shape'][:2]), results.get('scale_factor')
    original = tuple(results.get('ori_shape', shape)[:2])
    if isinstance(scale, LetterboxScale):
        return shape if scale.moved_boxes else original
    return max(shape[0], original[0]), max(shape[1], original[1])


@TRANSFORMS.register_module()
class DropDegenerateBoxes(BaseTransform):
    """Drop boxes that cannot be objects: not finite, too thin, or wholly outside of the image.

    mmdet's CocoDataset skips most of them, its XMLDataset none: zero and negative sizes would reach assigner and
    evaluation. Place it right after ``LoadAnnotations``. An image may be left without boxes; it is kept.

    Required keys: ``img_shape`` (h, w), ``gt_bboxes`` (G, 4); ``ori_shape`` (h, w) where boxes are loaded after the
    picture was scaled. Modified, kept aligned: ``gt_bboxes``,
    ``gt_bboxes_labels``, ``gt_ignore_flags``.

    Args:
        min_size: the smallest width and height that stays, pixels, above 0. Default 1.0.

    Raises:
        UserError: (a ValueError) for a ``min_size`` that is not a positive number.
    """

    def __init__(self, min_size: float = MIN_SIZE) -> None:
        if not isinstance(min_size, (int, float)) or not 0 < min_size < math.inf:
            raise UserError(f'DropDegenerateBoxes: min_size must be a positive number of pixels, got {min_size!r}')
        self.min_size = float(min_size)

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Filter one sample, in place."""
        if 'gt_bboxes' not in results:  # a pipeline without LoadAnnotations
            return results
        boxes: BaseBoxes = results['gt_bboxes']
        height, width = _limits(results)
        x1, y1, x2, y2 = boxes.tensor.unbind(-1)  # each (G,)
        keep = (boxes.tensor.abs() < _FAR).all(-1)  # NaN is not
        keep &= (x2 - x1 >= self.min_size) & (y2 - y1 >= self.min_size)
        keep &= (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
        keep_boxes(results, keep)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(min_size={self.min_size})'
