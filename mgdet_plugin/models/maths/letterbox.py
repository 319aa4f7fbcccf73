"""Geometry of the letterbox: where an image comes to lie in a fixed rectangle on grey, and boxes there and back.

Shapes: h x w is the original image, H x W the letterboxed one, (..., 4) are boxes xyxy in pixels. ``pad_param`` is
``[top, bottom, left, right]`` in pixels (mmyolo's order), ``scale_factor`` is ``(w_scale, h_scale)`` (mmdet's order).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mgdet_plugin.common.errors import UserError

NO_PADDING = (0.0, 0.0, 0.0, 0.0)
_PAD_DIVISOR = 32  # what mmdet's Pad(size_divisor=32) adds at the bottom and right is less


class LetterboxScale(tuple[float, float]):
    """The ``scale_factor`` of a letterbox: a plain (w_scale, h_scale) to everyone, with all that undoing it takes.

    Every ``PackDetInputs`` packs ``scale_factor``, so what it carries reaches the detector out of any config.

    Args:
        factors: (w_scale, h_scale).
        pad_param: [top, bottom, left, right] in pixels.
        moved_boxes: Whether true boxes were there and moved along; those loaded later are in original pixels.
        flip_direction: How the picture had been flipped before, mmdet's word; None: not at all.
    """

    pad_param: tuple[float, ...]
    moved_boxes: bool
    flip_direction: str | None

    def __new__(cls, factors: Sequence[float], pad_param: Sequence[float] = NO_PADDING, moved_boxes: bool = False,
                flip_direction: str | None = None) -> LetterboxScale:
        self = super().__new__(cls, factors)
        self.pad_param = tuple(map(float, pad_param))
        self.moved_boxes, self.flip_direction = moved_boxes, flip_direction
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self), self.pad_param, self.moved_boxes, self.flip_direction)

    def turned(self, meta: Mapping[str, Any]) -> tuple[bool, bool]:
        """Whether the picture was mirrored after the letterbox, from left to right and upside down."""
        now = flip_of(meta) if 'flip' in meta else self.flip_direction
        across, down = ((now in axes) != (self.flip_direction in axes)
                        for axes in (('horizontal', 'diagonal'), ('vertical', 'diagonal')))
        return across, down


def flip_of(meta: Mapping[str, Any]) -> str | None:
    """How a picture was flipped, None if it was not."""
    return meta.get('flip_direction') if meta.get('flip') else None


def placement(meta: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Where the original picture lies in the network's input: (w_scale, h_scale) and [top, bottom, left, right].

    Args:
        meta: Metas of a sample, of any ``meta_keys`` with ``scale_factor`` and ``ori_shape``.

    Raises:
        UserError: One of the two is missing, or the input is wider or higher than the picture and nothing says where in
            it the picture lies. Padding of less than 32 pixels is taken for what mmdet's ``Pad`` adds at the edge.
    """
    where = f'the metas of {meta.get("img_path") or "a sample"}'
    for key in ('scale_factor', 'ori_shape'):
        if meta.get(key) is None:
            raise UserError(f'{where} lack {key}, so boxes cannot be told in pixels of the picture; '
                            f"add '{key}' to meta_keys of PackDetInputs")
    scale, pad_param = meta['scale_factor'], meta.get('pad_param')
    if isinstance(scale, LetterboxScale):
        top, bottom, left, right = scale.pad_param
        across, down = scale.turned(meta)
        if down:
            top, bottom = bottom, top
        if across:
            left, right = right, left
        return tuple(scale), (top, bottom, left, right)
    if pad_param is not None:
        return tuple(scale), tuple(map(float, pad_param))
    if meta.get('img_shape') is not None:
        (height, width), (h, w) = meta['img_shape'][:2], meta['ori_shape'][:2]
        w, h = round(w * scale[0]), round(h * scale[1])
        if width - w >= _PAD_DIVISOR or height - h >= _PAD_DIVISOR:
            raise UserError(f'{where} do not say where in the input of {width}x{height} its {w}x{h} picture lies; '
                            "add 'pad_param' to meta_keys of PackDetInputs, or put Letterbox for Resize and Pad")
    return tuple(scale), NO_PADDING


def letterbox_geometry(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image of (w, h) comes to lie inside a letterbox of (W, H): (left, top, new_w, new_h), all in pixels.

    The float product is floored, so the long side can come out one pixel short of the letterbox; a side is never
    shorter than one pixel.
    """
    width, height = size
    ratio = min(scale[0] / width, scale[1] / height)
    new_w, new_h = max(1, int(width * ratio)), max(1, int(height * ratio))
    return (scale[0] - new_w) // 2, (scale[1] - new_h) // 2, new_w, new_h


def letterbox_image(image: np.ndarray, scale: tuple[int, int], pad_val: int = 128, exact: bool = True) -> np.ndarray:
    """Resize an image (h, w, 3) uint8 (bicubic with antialiasing) and paste it centred on grey (H, W, 3).

    Exact means Pillow's numbers, otherwise torch's, which take a fifth of the time: all within two levels of
    Pillow's, of 100 numbers 98 equal or more.
    """
    left, top, new_w, new_h = letterbox_geometry((image.shape[1], image.shape[0]), scale)
    canvas = np.full((scale[1], scale[0], 3), pad_val, dtype=np.uint8)
    if (new_h, new_w) == image.shape[:2]:
        resized = image
    elif exact:
        resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((new_w, new_h),
                                                                                 Image.Resampling.BICUBIC))
    else:
        pixels = torch.from_numpy(np.require(image, requirements=['C', 'W']))[None].permute(0, 3, 1, 2)
        resized = interpolate(pixels, (new_h, new_w), mode='bicubic', antialias=True).permute(0, 2, 3, 1)[0].numpy()
    canvas[top:top + new_h, left:left + new_w] = resized
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
