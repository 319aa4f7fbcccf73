"""A page about a data set that needs nothing but itself: what was found, with pictures."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS, declared_sizes_unbounded
from mgdet_plugin.deploy.sheet import Box, draw_boxes, read_rgb
from mgdet_plugin.prepare.faults.box_faults import class_counts
from mgdet_plugin.prepare.faults.examination import Examination
from mgdet_plugin.prepare.faults.findings import ERROR, NOTE, WARNING, Example, Finding, verdict_line
from mgdet_plugin.prepare.faults.picture_records import PictureSet
from mgdet_plugin.runs.run_page import html_figure, html_table, whole_page

SHOWN = 12  # pictures of a finding
_SIDE = 300  # pixels of a shown picture's longer side
_CONTEXT = 6  # times the size of a small box that is shown around it
_LEAST = 120  # pixels of a picture, below which no part is shown
_SMALL, _AROUND = 16, 14  # pixels as drawn: a box smaller than the first gets corners so far around it
_RED = (214, 40, 40)
_MARK = {ERROR: ('fail', '✗ '), WARNING: ('open', '! '), NOTE: ('soft', '')}
_STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 12px; margin: .8rem 0; }
.pictures figure { margin: 0; padding: 8px; } .pictures figcaption { overflow-wrap: anywhere; font-size: .8rem; }
.pictures img { max-height: 240px; object-fit: contain; }
"""


def doctor_page(found: Examination, sizes: bytes | None) -> str:
    """The page as HTML; ``sizes`` is a figure of boxes and anchors as PNG, where there are anchors."""
    name = escape(Path(found.source).name)
    sections = [f'<h1>{name}: {escape(verdict_line(found.findings))}</h1>',
                *(f'<p class="soft">{escape(line)}</p>' for line in found.summary()),
                '<h2>Findings</h2>', _overview(found.findings),
                *(part for each in found.findings for part in _section(each, found.data.classes)),
                '<h2>Classes</h2>', _classes(found.data)]
    if sizes:
        sections += ['<h2>Boxes and anchors</h2>', html_figure(
            sizes, 'Training boxes in the input, each in the colour of the level it is assigned to, and the anchors.')]
    return whole_page(f'{name}: {escape(verdict_line(found.findings))}', sections, _STYLE)


def _badge(severity: str) -> str:
    kind, mark = _MARK[severity]
    return f'<span class="{kind}">{mark}{severity}</span>'


def _overview(findings: Sequence[Finding]) -> str:
    if not findings:
        return '<p>Nothing was found.</p>'
    rows = [[_badge(each.severity), f'{_link(each)}', escape(each.what),
             escape(each.advice)] for each in findings]
    return html_table(('', 'finding', 'what', 'what to do'), rows, ('', 'name', 'text', 'text'))


def _link(finding: Finding) -> str:
    """The name of a finding, which leads to its pictures where it has some."""
    return f'<a href="#{finding.kind}">{finding.kind}</a>' if finding.examples else finding.kind


def _section(finding: Finding, classes: Sequence[str]) -> list[str]:
    if not finding.examples:
        return []
    figures = [_figure(each, classes) for each in finding.examples[:SHOWN]]
    left = len(finding.examples) - SHOWN
    return [f'<h2 id="{finding.kind}">{_badge(finding.severity)} {escape(finding.kind)}: {escape(finding.what)}</h2>',
            f'<p>{escape(finding.advice)}</p>', f'<div class="pictures">{"".join(figures)}</div>',
            *([f'<p class="soft">and {left:,} more, in doctor.json</p>'] if left > 0 else [])]


def _figure(example: Example, classes: Sequence[str]) -> str:
    """A picture with the boxes an example is about, or its text alone where it cannot be read."""
    try:
        with declared_sizes_unbounded():
            picture = read_rgb(example.path) if example.path else None
    except DECODER_ERRORS:
        picture = None
    named = some(list(dict.fromkeys(classes[label] for label in example.labels)), 3)
    caption = replace(example, path='/'.join(Path(example.path).parts[-2:])).line() + (f': {named}' if named else '')
    return (html_figure(_drawn(picture, example), caption, 'jpeg') if picture else
            f'<figure><figcaption>{escape(caption)}</figcaption></figure>')


def _drawn(picture: Image.Image, example: Example) -> bytes:
    """The part that is shown, with outlines alone: names would hide small boxes, and stand in the caption."""
    left, top, right, bottom = shown_part(picture.size, example)
    part = picture.crop((left, top, right, bottom))
    boxes = [Box((x1 - left, y1 - top, x2 - left, y2 - top), _RED, '') for x1, y1, x2, y2 in example.boxes]
    stream, scale = BytesIO(), _SIDE / max(part.size)
    boxes += [_corners_around(box, scale) for box in boxes if _size(box) * scale < _SMALL]
    draw_boxes(part, boxes, scale).save(stream, 'JPEG', quality=85)
    return stream.getvalue()


def _size(box: Box) -> float:
    """Side of a square of a box's area, in pixels."""
    x1, y1, x2, y2 = box.corners
    return math.sqrt(abs((x2 - x1) * (y2 - y1)))


def _corners_around(box: Box, scale: float) -> Box:
    """What lets a person find a box that is hardly a dot."""
    x1, y1, x2, y2 = box.corners
    away = _AROUND / scale
    return Box((min(x1, x2) - away, min(y1, y2) - away, max(x1, x2) + away, max(y1, y2) + away), box.colour, '',
               corners_alone=True)


def shown_part(size: tuple[int, int], example: Example) -> tuple[int, int, int, int]:
    """The part of a picture of (w, h) that is shown, (left, top, right, bottom) in pixels.

    That is all of it, or, where the boxes are small in it, their surroundings.
    """
    whole = (0, 0, *size)
    inside = [box for box in example.boxes if all(0 <= side <= max(size) for side in box)]
    if not inside or len(inside) < len(example.boxes):
        return whole
    x1, y1, x2, y2 = (pick(box[side] for box in inside) for side, pick in enumerate((min, min, max, max)))
    side = max(_LEAST, _CONTEXT * max(x2 - x1, y2 - y1))
    if side >= max(size):
        return whole
    left, top = (round(min(max(0.0, (low + high - side) / 2), max(0.0, limit - side)))
                 for low, high, limit in ((x1, x2, size[0]), (y1, y2, size[1])))
    return left, top, min(size[0], round(left + side)), min(size[1], round(top + side))


def _classes(data: PictureSet) -> str:
    counts = {split: class_counts(data, split) for split in data.splits}
    order = sorted(data.classes, key=lambda name: -sum(each[name] for each in counts.values()))
    rows = [[escape(name), *(f'{each[name]:,}' for each in counts.values())] for name in order]
    return html_table(('class', *(f'boxes in {escape(split)}' for split in counts)), rows,
                      ('name', *['number'] * len(counts)))
