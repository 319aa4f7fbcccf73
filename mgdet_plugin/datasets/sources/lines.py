"""The TensorFlow project's annotation lines: ``path x1,y1,x2,y2,class x1,y1,x2,y2,class ...``, a picture a line."""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
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
    """Read them, each the split that its name or folder tells.

    Raises:
        UserError: no class names, two files of one split, or a line that is neither a path nor boxes.
    """
    splits = [files.split_of(path) for path in found]
    if len(set(splits)) < len(splits):
        raise UserError(f'{files.given} holds {len(found)} files of annotation lines ({files.shown(found)}), and their '
                        'names do not tell one train, val and test set; give one of the files in place of the folder')
    classes = hints.classes or class_names(files, 'annotation lines number the classes')
    return read_files(dict(zip(found, splits)), classes, files, hints.images)


def read_sets(sets: Mapping[str, Path], classes: tuple[str, ...], images: Path | None = None) -> Annotated:
    """Read the file of each split, wherever it lies and whatever it is called.

    Raises:
        UserError: a file holds no annotation lines, or a line is neither a path nor boxes.
    """
    paths = tuple(sets.values())
    files = Files(paths[0], Path(os.path.commonpath([path.absolute().parent for path in paths])),
                  tuple(path.absolute() for path in paths))
    if len(find(files)) < len(paths):
        there = {path.absolute() for path in find(files)}
        other = next(path for path in paths if path.absolute() not in there)
        raise UserError(f'{other} holds no annotation lines; {LOOKS} are needed')
    return read_files({path.absolute(): split for split, path in sets.items()}, classes, files, images)


def read_files(splits: Mapping[Path, str | None], classes: tuple[str, ...], files: Files,
               images: Path | None = None) -> Annotated:
    """Read files, each with its split.

    Args:
        splits: file -> its split.
        classes: in the order that the lines number them.
        files: what they are among; pictures are looked for below its root.
        images: folder of the pictures, None for where they are found.

    Raises:
        UserError: a line is neither a path nor boxes, or a class has no name.
    """
    places = PicturePlaces(files.root, images)
    pictures, missing = [], []
    for path, split in splits.items():
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
    return Annotated(f'annotation lines ({files.shown(list(splits))})', files.given, classes, tuple(pictures),
                     tuple(missing))
