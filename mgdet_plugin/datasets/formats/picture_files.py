"""What can be told of a picture's file before it is decoded: whether it is one at all, its size, how it lies."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import cv2
from PIL import Image

# OpenCV, Pillow (SyntaxError for a broken PNG), tifffile and mmcv, which asserts that there is an image
DECODER_ERRORS = (cv2.error, OSError, ValueError, TypeError, AssertionError, AttributeError, SyntaxError, MemoryError,
                  Image.DecompressionBombError)
LIMIT = 'OPENCV_IO_MAX_IMAGE_PIXELS'  # OpenCV's own name for it; its default of 2 ** 30 would fill a memory
MAX_PIXELS = 2 ** 28
_ORIENTATION = 0x0112  # the tag of Exif
ON_ITS_SIDE = (5, 6, 7, 8)  # its values by which width and height change places


def file_fault(path: str) -> str:
    """Why a file must not even be opened by a decoder; empty for one that may."""
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        return 'no file'
    if os.path.getsize(path) == 0:
        return 'empty'
    with declared_sizes_unbounded():
        pixels = prod(picture_size(path))
    limit = int(os.environ.get(LIMIT, MAX_PIXELS))
    if pixels > limit:
        return f'{pixels:,} pixels declared, {limit:,} are allowed (by {LIMIT} in the environment)'
    return ''


def picture_size(path: str) -> tuple[int, int]:
    """(w, h) of a picture in pixels by its header, upright as loaders turn it; (0, 0) where Pillow cannot tell."""
    try:
        if not os.path.isfile(path):
            return 0, 0
        with Image.open(path) as picture:
            width, height = picture.size
            return (height, width) if _is_turned(picture) else (width, height)
    except DECODER_ERRORS:
        return 0, 0


def _is_turned(picture: Image.Image) -> bool:
    """Whether a picture lies on its side in its file, by its Exif data."""
    return orientation_of(picture) in ON_ITS_SIDE


def orientation_of(picture: Image.Image) -> int:
    """How a picture lies in its file, by its Exif data: 1 upright, up to 8 turned or mirrored."""
    try:
        return int(Image.Image.getexif(picture).get(_ORIENTATION, 1))  # that of a PNG decodes all of it
    except Exception:  # broken data may raise anything, and loaders pass over them
        return 1


@contextmanager
def declared_sizes_unbounded() -> Iterator[None]:
    """Pillow reads the header of any picture within it: the limit is ours."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
