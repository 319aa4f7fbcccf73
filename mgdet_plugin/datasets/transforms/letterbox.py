"""Letterbox: the transform that fits an image into a fixed rectangle on grey, its boxes with it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import autocast_box_type

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.letterbox import (
    LetterboxScale,
    flip_of,
    letterbox_boxes,
    letterbox_geometry,
    letterbox_image,
)

SIDE_DIVISOR = 32  # the coarsest stride: stride-2 convolutions of odd maps differ between Keras and torch


def _checked_scale(scale: Sequence[int]) -> tuple[int, int]:
    """(W, H), having refused all but two positive whole multiples of 32."""
    if isinstance(scale, str) or not isinstance(scale, Sequence) or len(scale) != 2 \
            or not all(isinstance(side, int) and not isinstance(side, bool) for side in scale):
        raise UserError(f'Letterbox: scale must be (width, height) in whole pixels, e.g. (608, 608), got {scale!r}')
    for side in scale:
        if side <= 0 or side % SIDE_DIVISOR:
            below = side // SIDE_DIVISOR * SIDE_DIVISOR
            nearest = f'{below} or {below + SIDE_DIVISOR}' if below > 0 else str(SIDE_DIVISOR)
            raise UserError(f'Letterbox: sides must be multiples of {SIDE_DIVISOR}, got {side} in scale '
                            f'{tuple(scale)}; the nearest allowed: {nearest}')
    return scale[0], scale[1]


def _as_uint8(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 of an image; float images, as PhotoMetricDistortion leaves them, are rounded and clipped.

    Grey images (h, w) and (h, w, 1) get three equal channels. Other integers are refused, since 16 bit would saturate.
    """
    grey = image[..., None] if image.ndim == 2 else image
    if grey.ndim != 3 or grey.shape[2] not in (1, 3) or image.size == 0:
        raise UserError(f'Letterbox: needs a grey image (h, w) or one of three channels (h, w, 3), got {image.shape}; '
                        "LoadImageFromFile(color_type='color') reads files so")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise UserError(f'Letterbox: needs an 8-bit image or floats from 0 to 255, got {image.dtype}; '
                        "LoadImageFromFile(color_type='color') reads files so, an array must be scaled to 0..255")
    image = grey if grey.shape[2] == 3 else np.repeat(grey, 3, axis=2)
    if image.dtype != np.uint8:
        rounded = np.rint(image)
        image = rounded.clip(0, 255, out=rounded).astype(np.uint8)
    if image.strides[0] < image.strides[2]:  # a channel after the other, as swapped channels are left: copied slowly
        image = cv2.merge([image[..., channel] for channel in range(3)])
    return image


@TRANSFORMS.register_module()
class Letterbox(BaseTransform):
    """Fit the image into ``scale`` keeping its aspect ratio, centred on grey, and map the boxes along.

    Required keys: ``img`` (h, w, 3), or grey (h, w) or (h, w, 1), uint8 or float 0..255 (rounded to uint8);
    ``gt_bboxes`` (G, 4), optional: boxes that are loaded later stay in original pixels, and both orders are right.
    Modified: ``img`` (H, W, 3) uint8, ``img_shape`` (H, W), ``gt_bboxes`` (scaled, shifted, none clipped or dropped).
    Added: ``scale`` (W, H), ``scale_factor`` (w_scale, h_scale) as true ratios new / old of each axis, ``keep_ratio``,
    ``pad_param`` float32 ``[top, bottom, left, right]`` in pixels, mmyolo's order. ``scale_factor`` is a
    :class:`LetterboxScale`, which knows the padding, too.

    mmdet's own heads divide by ``scale_factor`` alone, so only :class:`MultiGridHead` takes boxes out of a letterbox.

    Args:
        scale: (W, H) of the output, pixels, both multiples of 32.
        pad_val: grey level of the border, 0 to 255. Default 128.
        exact: scale by Pillow, as the reference does; False, for training alone: within two levels of that, in a
            fifth of the time. Default True.

    Raises:
        UserError: (a ValueError) for sides that are not multiples of 32, a grey level outside of 0..255 or an ``exact``
            that is neither True nor False.
    """

    def __init__(self, scale: tuple[int, int], pad_val: int = 128, exact: bool = True) -> None:
        self.scale = _checked_scale(scale)
        if not isinstance(pad_val, int) or not 0 <= pad_val <= 255:
            raise UserError(f'Letterbox: pad_val must be a whole number from 0 to 255, got {pad_val!r}')
        if not isinstance(exact, bool):
            raise UserError(f'Letterbox: exact must be True or False, got {exact!r}')
        self.pad_val, self.exact = pad_val, exact

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Letterbox one sample, in place.

        Raises:
            UserError: The image is of another kind, or there are masks or segmentation maps; the detector has none.
        """
        for key in ('gt_masks', 'gt_seg_map'):
            if results.get(key) is not None:
                raise UserError(f'Letterbox: cannot map {key}; load boxes only: '
                                 "dict(type='LoadAnnotations', with_bbox=True), no with_mask or with_seg")
        image = _as_uint8(results['img'])
        height, width = image.shape[:2]
        left, top, new_w, new_h = letterbox_geometry((width, height), self.scale)
        bottom, right = self.scale[1] - new_h - top, self.scale[0] - new_w - left
        results['img'] = letterbox_image(image, self.scale, self.pad_val, self.exact)
        results['img_shape'] = results['img'].shape[:2]
        results['scale'] = self.scale
        boxes = results.get('gt_bboxes')
        results['keep_ratio'] = True
        results['pad_param'] = np.array([top, bottom, left, right], dtype=np.float32)
        results['scale_factor'] = LetterboxScale((new_w / width, new_h / height), results['pad_param'],
                                                 boxes is not None, flip_of(results))
        if boxes is not None:
            boxes.tensor = letterbox_boxes(boxes.tensor, results['scale_factor'], results['pad_param'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, pad_val={self.pad_val}, exact={self.exact})'
