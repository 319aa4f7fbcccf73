"""Pictures with their boxes, and a sheet of them. All colours here are RGB; :func:`read_rgb` is where that begins."""
from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from mgdet_plugin.common.files import write_together

Colour = tuple[int, int, int]
SHEET_WIDTH = 1600  # pixels; a row is filled up to it, and a larger picture scaled down to it
_LARGEST = 8192  # pixels of a side
_SMALL = 384  # pixels; a picture whose longer side is below it is enlarged by a whole factor
_SPACE = 4  # pixels between pictures
_TEXT = 14  # pixels, the least height of letters
_DASH = 6  # pixels


class Box(NamedTuple):
    """A box to draw: corners (x1, y1, x2, y2) in pixels of the picture, colour, what is written at it, and how."""

    corners: Sequence[float]
    colour: Colour
    text: str
    dashed: bool = False


def read_rgb(path: str) -> Image.Image:
    """A picture file as it is trained on (its orientation applied), in RGB; mmcv's arrays are BGR by default."""
    return Image.fromarray(mmcv.imread(path, channel_order='rgb'))


def class_colours(metainfo: Mapping[str, Any]) -> list[Colour]:
    """A colour a class: the dataset's palette where it tells them apart, else as many hues, evenly spaced."""
    classes, palette = metainfo['classes'], metainfo.get('palette')
    if isinstance(palette, Sequence) and not isinstance(palette, str):
        given = [tuple(map(int, colour)) for colour in palette[:len(classes)]]
        if len(set(given)) == len(classes):
            return given  # type: ignore[return-value]
    count = len(classes)
    spread = [colorsys.hsv_to_rgb(index / count, 0.9, 0.9 if index % 2 else 0.65) for index in range(count)]
    return [(int(red * 255), int(green * 255), int(blue * 255)) for red, green, blue in spread]


def scale_of(size: tuple[int, int], enlarge: int | None = None) -> float:
    """The factor a picture of (width, height) is drawn at.

    Args:
        size: Pixels.
        enlarge: The factor asked for, as far as memory lets (8,192 pixels a side). Default: small pictures are
            enlarged until text is legible beside their objects, photographs stay as they are, and what is larger than
            the sheet is scaled down to it.
    """
    longer = max(size)
    return min(enlarge, _LARGEST / longer) if enlarge else min(-(-_SMALL // longer), SHEET_WIDTH / longer)


def draw_boxes(picture: Image.Image, boxes: Iterable[Box], scale: float) -> Image.Image:
    """The picture at a scale, the boxes on it with their texts, which stay within it."""
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    drawn = picture.resize(size, Image.Resampling.BICUBIC) if size != picture.size else picture.copy()
    pen = ImageDraw.Draw(drawn)
    placed = [(box, tuple(side * scale for side in box.corners)) for box in boxes]
    heights = sorted(corners[3] - corners[1] for _, corners in placed) or [0.0]
    text_height = max(_TEXT, min(max(size) // 100, int(heights[len(heights) // 2] / 3)))  # does not hide the objects
    font = ImageFont.truetype(findfont('DejaVu Sans'), text_height)
    width = max(2, text_height // 6)
    for box, corners in placed:
        _outline(pen, corners, box, width)
    for box, corners in placed:  # after all outlines, which would cross them out
        if box.text:
            _label(pen, corners, box, font, size)
    return drawn


def _outline(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], box: Box, width: int) -> None:
    left, top, right, bottom = corners
    if not box.dashed:
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=box.colour, width=width)
        return
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline='white', width=width)
    for start in range(int(left), int(right), 2 * _DASH):
        for y in (top, bottom - width + 1):
            pen.rectangle((start, y, min(start + _DASH, right), y + width - 1), fill=box.colour)
    for start in range(int(top), int(bottom), 2 * _DASH):
        for x in (left, right - width + 1):
            pen.rectangle((x, start, x + width - 1, min(start + _DASH, bottom)), fill=box.colour)


def _label(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], box: Box, font: ImageFont.FreeTypeFont,
           size: tuple[int, int]) -> None:
    """Write a box's text on its colour: above it, that of a dashed one below it, moved into the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), box.text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(corners[0], size[0] - width))
    y = max(0.0, min(corners[3] if box.dashed else corners[1] - height, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=box.colour)
    dark = sum(share * level for share, level in zip((0.3, 0.59, 0.11), box.colour)) < 140
    pen.text((x + 2 - left, y + 2 - top), box.text, fill='white' if dark else 'black', font=font)


def write_sheet(pictures: Sequence[Image.Image], out: Path) -> None:
    """Place pictures in rows of about equal width, each row as high as its highest picture, and write a PNG."""
    total = sum(picture.width + _SPACE for picture in pictures)
    row_width = total / -(-total // SHEET_WIDTH)
    places: list[tuple[int, int]] = []
    x = y = height = 0
    for picture in pictures:
        if x and (x + picture.width > SHEET_WIDTH or x + picture.width / 2 > row_width):
            x, y, height = 0, y + height + _SPACE, 0
        places.append((x, y))
        x, height = x + picture.width + _SPACE, max(height, picture.height)
    sheet = Image.new('RGB', (max(place[0] + picture.width for place, picture in zip(places, pictures)), y + height),
                      'white')
    for place, picture in zip(places, pictures):
        sheet.paste(picture, place)
    write_together({out: partial(sheet.save, format='PNG', optimize=True)})
