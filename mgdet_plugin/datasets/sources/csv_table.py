"""Tables of boxes: a .csv with a header, a box a row, columns found by their names."""
from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Files, Hints, Picture, split_of
from mgdet_plugin.datasets.sources.picture_places import PicturePlaces

LOOKS = 'a .csv whose header names picture, box and class'
_PICTURE = ('filename', 'image', 'imagepath', 'imagename', 'imagefile', 'file', 'path', 'filepath', 'imageid', 'img')
_CLASS = ('class', 'label', 'classname', 'category', 'labelname', 'categoryname', 'name')
_SPLIT = ('split', 'set', 'subset')
_CORNERS = (('xmin', 'ymin', 'xmax', 'ymax'), ('x1', 'y1', 'x2', 'y2'), ('left', 'top', 'right', 'bottom'))
_SIZES = (('x', 'y', 'w', 'h'), ('xmin', 'ymin', 'w', 'h'), ('bboxx', 'bboxy', 'bboxwidth', 'bboxheight'),
          ('left', 'top', 'w', 'h'), ('x', 'y', 'width', 'height'), ('xmin', 'ymin', 'width', 'height'),
          ('left', 'top', 'width', 'height'))


def columns_of(header: list[str]) -> dict[str, str] | None:
    """What a column is for -> its name in the header, ``corners`` set where boxes end in a corner; None for no table.

    Width and height beside two corners are the picture's and not used.
    """
    plain = {re.sub(r'[^a-z0-9]', '', name.casefold()): name for name in header}
    picture, label, split = (next((plain[each] for each in names if each in plain), None)
                             for names in (_PICTURE, _CLASS, _SPLIT))
    box = next((each for each in (*_CORNERS, *_SIZES) if set(each) <= set(plain)), None)
    if picture is None or label is None or box is None:
        return None
    found = dict(zip(('x', 'y', 'third', 'fourth'), (plain[each] for each in box)), picture=picture, label=label)
    return found | ({'corners': 'yes'} if box in _CORNERS else {}) | ({'split': split} if split else {})


def find(files: Files) -> list[Path]:
    """The tables whose header names all that is needed."""
    return [path for path in files.ending('.csv', '.tsv') if columns_of(_rows(path)[0])]


def read(files: Files, found: list[Path], hints: Hints) -> Annotated:
    """Read them; classes are in the order of the hints, else of the alphabet.

    Raises:
        UserError: two files of one split, a box that is not four numbers, or a class that the hints do not name.
    """
    splits = [files.split_of(path) for path in found]
    if len(set(splits)) < len(splits):
        raise UserError(f'{files.given} holds {len(found)} tables of boxes ({files.shown(found)}), and their names do '
                        'not tell one train, val and test set; give one of the files in place of the folder')
    places = PicturePlaces(files.root, hints.images)
    boxes: dict[tuple[Path, str | None], list[Box]] = {}  # a picture of two splits is two, and refused later
    missing: dict[str, None] = {}
    for path, split in zip(found, splits):
        header, rows = _rows(path)
        columns = columns_of(header) or {}
        for number, row in enumerate(rows, 2):
            name = (row.get(columns['picture']) or '').strip()
            place = places.find(name, path) or places.find(name, path, by_stem=True)  # an id has no ending
            if place is None:
                missing[name] = None
                continue
            own = (row.get(columns.get('split', '')) or '').strip()
            key = place, (split_of(Path(own)) if own else None) or split
            boxes.setdefault(key, []).extend(_box(row, columns, f'{path}, line {number}'))
    seen = sorted({box.name for each in boxes.values() for box in each})
    unknown = sorted(set(seen) - set(hints.classes or seen))
    if unknown:
        raise UserError(f'--classes does not name {some(unknown)}, which the table has; name all of them')
    classes = hints.classes or (checked_names(seen, str(files.given)) if seen else ())
    return Annotated(f'table of boxes ({files.shown(found)})', files.given, classes,
                     tuple(Picture(path, tuple(each), split) for (path, split), each in boxes.items()), tuple(missing))


def _box(row: Mapping[str, str], columns: Mapping[str, str], where: str) -> list[Box]:
    """The box of a row, none for a row without numbers (a picture without objects)."""
    texts = [(row.get(columns[key]) or '').strip() for key in ('x', 'y', 'third', 'fourth')]
    if not any(texts):
        return []
    try:
        x, y, third, fourth = map(float, texts)
    except ValueError:
        raise UserError(f'{where}: the box is {texts}; four numbers are needed') from None
    name = (row.get(columns['label']) or '').strip()
    if not name:
        raise UserError(f'{where}: the box has no class')
    return [Box(name, (x, y, third - x, fourth - y) if 'corners' in columns else (x, y, third, fourth))]


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows, set apart by what the header is set apart by."""
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    first = text.partition('\n')[0]
    delimiter = max(',;\t', key=first.count)
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    try:
        return list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise UserError(f'{path} is no table ({error}); correct it, or take it out of the folder') from error
