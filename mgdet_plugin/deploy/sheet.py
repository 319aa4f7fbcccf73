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
from torch import Tensor

from mgdet_plugin.common.files import write_together

Colour = tuple[int, int, int]
SHEET_WIDTH = 1600  # pixels; a row is filled up to it, and a larger picture scaled down to it
_LARGEST = 8192  # pixels of a side
_SMALL = 384  # pixels; a picture whose longer side is below it is enlarged by a whole factor
_SPACE = 4  # pixels between pictures
_TEXT = 14  # pixels, the least height of letters
_DASH = 6  # pixels
_LINE = _TEXT + 6  # pixels of a line of text
_SHADE, _EDGE = 50, 130  # of 255: how much of a shaded area and of its edge covers the picture


class Box(NamedTuple):
    """A box to draw: corners (x1, y1, x2, y2) in pixels of the picture, colour, what is written at it, and how: its
    outline, that dashed, its area shaded or its four corners alone."""

    corners: Sequence[float]
    colour: Colour
    text: str
    dashed: bool = False
    shaded: bool = False
    corners_alone: bool = False


def read_rgb(path: str) -> Image.Image:
    """A picture file as it is trained on (its orientation applied), in RGB; mmcv's arrays are BGR by default."""
    return Image.fromarray(mmcv.imread(path, channel_order='rgb'))


def rgb_of_input(inputs: Tensor) -> Image.Image:
    """The picture of a sample's ``inputs``, (3, H, W) from 0 to 255 in BGR of any type, as the pipeline gives it."""
    return Image.fromarray(inputs.flip(0).permute(1, 2, 0).clamp(0, 255).round().byte().contiguous().cpu().numpy())


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
    placed = [(box, tuple(side * scale for side in box.corners)) for box in boxes]
    heights = sorted(corners[3] - corners[1] for _, corners in placed) or [0.0]
    text_height = max(_TEXT, min(max(size) // 100, int(heights[len(heights) // 2] / 3)))  # does not hide the objects
    font = _font(text_height)
    width = max(2, text_height // 6)
    for box, corners in placed:  # below all outlines
        if box.shaded:
            ImageDraw.Draw(drawn, 'RGBA').rectangle(corners, fill=(*box.colour, _SHADE), outline=(*box.colour, _EDGE))
    pen = ImageDraw.Draw(drawn)
    for box, corners in placed:
        if box.corners_alone:
            _corners(pen, corners, box, width)
        elif not box.shaded:
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


def _corners(pen: ImageDraw.ImageDraw, corners: tuple[float, ...], box: Box, width: int) -> None:
    """The four corners of an outline, each a third of the shorter side long, at most two dashes."""
    left, top, right, bottom = corners
    long = max(1.0, min(2 * _DASH, (right - left) / 3, (bottom - top) / 3))
    for x, inward in ((left, long), (right - width + 1, -long)):
        for y, downward in ((top, long), (bottom - width + 1, -long)):
            for end in ((x + inward, y), (x, y + downward)):
                low, high = (min(x, end[0]), min(y, end[1])), (max(x, end[0]), max(y, end[1]))
                pen.rectangle((*low, high[0] + width - 1, high[1] + width - 1), fill=box.colour)


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


def with_caption(picture: Image.Image, text: str) -> Image.Image:
    """The picture below a line of text, which is cut off where it is longer."""
    font = _font(_TEXT)
    drawn = Image.new('RGB', (picture.width, picture.height + _LINE), 'white')
    drawn.paste(picture, (0, _LINE))
    while font.getlength(text) > picture.width and len(text) > 1:
        text = text.rstrip('…')[:-1] + '…'
    ImageDraw.Draw(drawn).text((0, 1), text, fill='black', font=font)
    return drawn


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in one row."""
    drawn = Image.new('RGB', (sum(each.width + _SPACE for each in pictures) - _SPACE,
                              max(each.height for each in pictures)), 'white')
    x = 0
    for each in pictures:
        drawn.paste(each, (x, 0))
        x += each.width + _SPACE
    return drawn


def _heading(entries: Sequence[tuple[str, Colour | None]], width: int) -> Image.Image:
    """Words, each of an entry's colour on a patch of it, in lines of at most a width in pixels; '' begins a new one."""
    font = _font(_TEXT)
    placed: list[tuple[int, int, str, Colour | None]] = []
    x = y = 0
    for text, colour in entries:
        if not text:
            x, y = 0, y + _LINE
            continue
        for word in [text] if colour else text.split(' '):
            long = round(font.getlength(f'{word} ')) + (_LINE if colour else 0)
            if x and x + long > width:
                x, y = 0, y + _LINE
            placed.append((x, y, word, colour))
            x += long
    drawn = Image.new('RGB', (width, y + _LINE + _SPACE), 'white')
    pen = ImageDraw.Draw(drawn)
    for x, y, word, colour in placed:
        if colour:
            pen.rectangle((x, y + 3, x + _TEXT - 2, y + _TEXT + 1), fill=colour)
        pen.text((x + (_LINE if colour else 0), y + 1), word, fill='black', font=font)
    return drawn


def _font(height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont('DejaVu Sans'), height)


def write_sheet(pictures: Sequence[Image.Image], out: Path, heading: Sequence[tuple[str, Colour | None]] = ()) -> None:
    """Place pictures in rows of about equal width, each row as high as its highest picture, and write a PNG.

    Args:
        pictures: At least one.
        out: The PNG.
        heading: What is written above them: words, those with a colour behind a patch of it; '' begins a new line.
    """
    total = sum(picture.width + _SPACE for picture in pictures)
    row_width = total / -(-total // SHEET_WIDTH)
    places: list[tuple[int, int]] = []
    x = y = height = 0
    for picture in pictures:
        if x and (x + picture.width > SHEET_WIDTH or x + picture.width / 2 > row_width):
            x, y, height = 0, y + height + _SPACE, 0
        places.append((x, y))
        x, height = x + picture.width + _SPACE, max(height, picture.height)
    width = max(place[0] + picture.width for place, picture in zip(places, pictures))
    above = _heading(heading, width) if heading else None
    top = above.height if above else 0
    sheet = Image.new('RGB', (width, top + y + height), 'white')
    if above:
        sheet.paste(above, (0, 0))
    for (x, y), picture in zip(places, pictures):
        sheet.paste(picture, (x, top + y))
    write_together({out: partial(sheet.save, format='PNG', optimize=True)})
