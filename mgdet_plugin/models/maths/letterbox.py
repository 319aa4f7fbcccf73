"""Geometry of the letterbox: where an image comes to lie in a fixed rectangle on grey, and boxes there and back.

Shapes: h x w is the original image, H x W the letterboxed one, (..., 4) are boxes xyxy in pixels. ``pad_param`` is
``[top, bottom, left, right]`` in pixels (mmyolo's order), ``scale_factor`` is ``(w_scale, h_scale)`` (mmdet's order).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor


def letterbox_geometry(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image of (w, h) comes to lie inside a letterbox of (W, H): (left, top, new_w, new_h), all in pixels.

    The float product is floored, so the long side can come out one pixel short of the letterbox; a side is never
    shorter than one pixel.
    """
    width, height = size
    ratio = min(scale[0] / width, scale[1] / height)
    new_w, new_h = max(1, int(width * ratio)), max(1, int(height * ratio))
    return (scale[0] - new_w) // 2, (scale[1] - new_h) // 2, new_w, new_h


def letterbox_image(image: np.ndarray, scale: tuple[int, int], pad_val: int = 128) -> np.ndarray:
    """Resize an image (h, w, 3) uint8 (bicubic with antialiasing, by Pillow) and paste it centred on grey (H, W, 3)."""
    left, top, new_w, new_h = letterbox_geometry((image.shape[1], image.shape[0]), scale)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((new_w, new_h), Image.Resampling.BICUBIC)
    canvas = np.full((scale[1], scale[0], 3), pad_val, dtype=np.uint8)
    canvas[top:top + new_h, left:left + new_w] = np.asarray(resized)
    return canvas


def _scale_and_offset(boxes: Tensor, scale_factor: Sequence[float],
                      pad_param: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Per-coordinate factor (4,) and shift (4,) of xyxy boxes, on the boxes' device and in their precision."""
    w_scale, h_scale = (float(value) for value in scale_factor)
    top, _, left, _ = (float(value) for value in pad_param)
    return boxes.new_tensor([w_scale, h_scale, w_scale, h_scale]), boxes.new_tensor([left, top, left, top])


def letterbox_boxes(boxes: Tensor, scale_factor: Sequence[float], pad_param: Sequence[float]) -> Tensor:
    """Map boxes (..., 4) of the original image into the letterboxed one: scale, then shift. Nothing is clipped."""
    factor, shift = _scale_and_offset(boxes, scale_factor, pad_param)
    return boxes * factor + shift


def unletterbox_boxes(boxes: Tensor, scale_factor: Sequence[float], pad_param: Sequence[float]) -> Tensor:
    """Inverse of :func:`letterbox_boxes`: shift back, then divide by the scale. Nothing is clipped."""
    factor, shift = _scale_and_offset(boxes, scale_factor, pad_param)
    return (boxes - shift) / factor
