"""The TensorFlow project's annotation lines: ``path x1,y1,x2,y2,class x1,y1,x2,y2,class ...``, a picture a line."""
from __future__ import annotations

import re
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Files, Hints, Picture, numbered
from mgdet_plugin.datasets.sources.class_files import class_names
from mgdet_plugin.datasets.sources.picture_places import PicturePlaces

LOOKS = '.txt lines "path x1,y1,x2,y2,class ..."'
_NUMBER = r'-?\d+(?:\.\d+)?'
_BOX = re.compile(rf'\s+({_NUMBER}),({_NUMBER}),({_NUMBER}),({_NUMBER}),(\d+)$')
_SNIFFED = 20  # lines


def find(files: Files) -> list[Path]:
    """The files of lines."""
    found = []
    for path in files.ending('.txt'):
        with path.open(encoding='utf-8', errors='replace') as stream:
            if any(_BOX.search(line.rstrip()) for line, _ in zip(stream, range(_SNIFFED))):
                found.append(path)
    return found


def parsed(line: str) -> tuple[str, list[tuple[float, float, float, float, str]]]:
    """Path and boxes (x1, y1, x2, y2, number of the class) of a line; a path may hold spaces."""
    boxes = []
    rest = line.rstrip()
    while match := _BOX.search(rest):
        x1, y1, x2, y2 = map(float, match.groups()[:4])
        boxes.append((x1, y1, x2, y2, match[5]))
        rest = rest[:match.start()]
    return rest.strip(), boxes[::-1]


def read(files: Files, found: list[Path], hints: Hints) -> Annotated:
    """Read them.

    Raises:
        UserError: no class names, two files of one split, or a line that is neither a path nor boxes.
    """
    splits = [files.split_of(path) for path in found]
    if len(set(splits)) < len(splits):
        raise UserError(f'{files.given} holds {len(found)} files of annotation lines ({files.shown(found)}), and their '
                        'names do not tell one train, val and test set; give one of the files in place of the folder')
    classes = hints.classes or class_names(files, 'annotation lines number the classes')
    places = PicturePlaces(files.root, hints.images)
    pictures, missing = [], []
    for path, split in zip(found, splits):
        for number, line in enumerate(path.read_text(encoding='utf-8-sig', errors='replace').splitlines(), 1):
            if not line.strip():
                continue
            name, boxes = parsed(line)
            where = f'{path}, line {number}'
            if re.search(rf'{_NUMBER},{_NUMBER},{_NUMBER}', name):
                raise UserError(f'{where}: {name[-60:]!r} ends in no box; "path x1,y1,x2,y2,class ..." is needed, '
                                'numbers joined by commas and boxes set apart by spaces')
            place = places.find(name, path)
            if place is None:
                missing.append(name)
                continue
            pictures.append(Picture(place, tuple(
                Box(numbered(classes, number_of, where), (x1, y1, x2 - x1, y2 - y1))
                for x1, y1, x2, y2, number_of in boxes), split))
    return Annotated(f'annotation lines ({files.shown(found)})', files.given, classes, tuple(pictures), tuple(missing))
