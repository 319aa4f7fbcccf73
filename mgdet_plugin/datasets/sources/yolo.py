"""YOLO's label files: by a ``data.yaml``, by lists of pictures, or by folders ``images`` and ``labels`` alone."""
from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import PICTURE_SUFFIXES, is_below
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.datasets.formats.box_sense import RELATIVE
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.formats.picture_files import picture_size
from mgdet_plugin.datasets.old_images import pictures_below
from mgdet_plugin.datasets.sources.annotated import SPLITS, Annotated, Box, Files, Hints, Picture, numbered, split_of
from mgdet_plugin.datasets.sources.class_files import class_names
from mgdet_plugin.datasets.sources.picture_places import PicturePlaces

LOOKS = 'a data.yaml with names, or .txt labels "class x y w h" beside pictures or in labels/'
_LABEL = re.compile(r'\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*')
Named = list[tuple[str | None, Path]]  # split and path of each picture


def find(files: Files) -> list[Path]:
    """The ``data.yaml``; without one, the lists of pictures; without those, the label files."""
    sets = [path for path in files.ending('.yaml', '.yml') if _is_set(path)]
    labels = [path for path in files.ending('.txt') if _LABEL.fullmatch(_first_line(path))]
    lists = [path for path in files.ending('.txt') if split_of(Path(path.stem)) and _names_picture(_first_line(path))]
    return sets or (lists if labels or files.given in lists else []) or labels


def read(files: Files, found: list[Path], hints: Hints) -> Annotated:
    """Read the labels of all pictures; outlines become the boxes around them.

    Raises:
        UserError: several ``data.yaml``, no class names, a path that leads nowhere, or a line that is no label.
    """
    notes: list[str] = []
    is_set = found[0].suffix.lower() != '.txt'
    if is_set:
        if len(found) > 1:
            raise UserError(f'{files.given} holds several sets ({files.shown(found)}); give one of these files')
        classes, named, notes = _read_set(found[0], hints, PicturePlaces(files.root, hints.images))
    else:
        classes = hints.classes or class_names(files, 'YOLO labels number the classes')
        if _names_picture(_first_line(found[0])):
            named = [(split_of(Path(path.stem)), each) for path in found for each in _listed(path, files, hints)]
        else:
            places = PicturePlaces(files.root, hints.images)
            named = [(split_of(path.relative_to(places.root).parent), path) for path in places.all()]
    pictures, missing, without, outlines = [], [], 0, 0
    for split, path in named:
        if not os.path.isfile(path):  # a name that is too long for any file is missing, too
            missing.append(str(path))
            continue
        label = label_file(path)
        lines = label.read_text(encoding='utf-8', errors='replace').splitlines() if label else []
        boxes, shapes = _boxes(lines, classes, picture_size(str(path)), str(label))
        without += label is None
        outlines += shapes
        pictures.append(Picture(path, tuple(boxes), split))
    if without:
        notes.append(f'{without:,} pictures have no label file: taken as pictures without objects')
    if outlines:
        notes.append(f'{outlines:,} outlines (segments) taken as the boxes around them')
    what = files.shown(found) if is_set or len(found) < 4 else f'{len(found):,} label files'
    return Annotated(f'YOLO ({what})', files.given, classes, tuple(pictures), tuple(missing), tuple(notes))


def label_file(picture: Path) -> Path | None:
    """The labels of a picture: in ``labels`` where it is in ``images``, or beside it; None where there are none."""
    parts = list(picture.parts)
    places = [picture.with_suffix('.txt')]
    if 'images' in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index('images')
        places.insert(0, Path(*parts[:last], 'labels', *parts[last + 1:]).with_suffix('.txt'))
    return next(filter(os.path.isfile, places), None)


def _boxes(lines: Sequence[str], classes: Sequence[str], size: tuple[int, int], where: str) -> tuple[list[Box], int]:
    """The boxes of label lines in pixels, and how many were outlines."""
    boxes, outlines = [], 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            values = []
        if (len(values) != 4 and (len(values) < 6 or len(values) % 2)) or not max(map(abs, values)) <= RELATIVE or any(
                map(math.isnan, values)):
            raise _no_label(where, number, line)
        if len(values) == 4:
            x, y, width, height = values
            left, top = x - width / 2, y - height / 2
        else:
            outlines += 1
            left, top = min(values[::2]), min(values[1::2])
            width, height = max(values[::2]) - left, max(values[1::2]) - top
        name = numbered(classes, words[0], f'{where}, line {number}')
        boxes.append(Box(name, (left * size[0], top * size[1], width * size[0], height * size[1])))
    return boxes, outlines


def _no_label(where: str, number: int, line: str) -> UserError:
    return UserError(f'{where}, line {number}: {line[:80]!r} is no label; "class x y w h" or "class x1 y1 x2 y2 x3 y3 '
                     '..." in shares of the picture is needed')


def refuse_faulty(files: Files) -> None:
    """Say of files that were no annotations what is wrong where they can only be meant as YOLO's.

    Raises:
        UserError: A ``data.yaml`` is broken or lacks what it needs, or a line of a label file is no label.
    """
    for path in files.ending('.yaml', '.yml'):
        if path.stem == 'data' or path == files.given:
            lacking = [key for key in ('names', 'train') if key not in _content(path)]
            if lacking:
                raise UserError(f'{path} has no {" and no ".join(lacking)}; names lists the classes, train the folder '
                                'of the pictures')
    for path in files.ending('.txt'):
        if 'labels' in path.relative_to(files.root).parent.parts or any(
                path.with_suffix(suffix).is_file() for suffix in PICTURE_SUFFIXES):
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
            for number, line in enumerate(lines, 1):
                if line.strip() and not _LABEL.fullmatch(line.strip()):
                    raise _no_label(str(path), number, line)


def _read_set(path: Path, hints: Hints, places: PicturePlaces) -> tuple[tuple[str, ...], Named, list[str]]:
    """Classes and pictures of a ``data.yaml``."""
    content = _content(path)
    given = content['names']
    if isinstance(given, dict):
        if set(given) != {str(place) for place in range(len(given))}:
            raise UserError(f'{path}: names must number the classes from 0 without a gap, got {some(list(given))}')
        given = [given[str(place)] for place in range(len(given))]
    names = checked_names(given, f'{path}: names')
    if hints.classes is not None and len(hints.classes) != len(names):
        raise UserError(f'--classes has {len(hints.classes)} names, {path} {len(names)}; leave --classes out')
    names = hints.classes or names
    named: Named = []
    notes: list[str] = []
    by_split = {}
    for key in (*SPLITS, 'valid'):
        values = content.get(key)
        pictures = [] if not values else [
            each for value in ([values] if isinstance(values, str) else values)
            for each in _pictures(path, str(content.get('path') or ''), str(value), key, notes, places)]
        if pictures:
            by_split[split_of(Path(key)) or key] = pictures
    if by_split.get('val') and by_split.get('val') == by_split.get('train'):
        notes.append('val names the pictures of train: taken as no val')
        del by_split['val']
    for split, pictures in by_split.items():
        named += [(split, each) for each in pictures]
    if not named:
        raise UserError(f'{path}: train, val and test lead to no picture (seen from {path.parent}); set path, or '
                        'train, to the folder of the pictures')
    return names, named, notes


def _pictures(path: Path, base: str, value: str, key: str, notes: list[str], places: PicturePlaces) -> list[Path]:
    """The pictures of one entry of a ``data.yaml``: a folder or a list, from wherever it is there."""
    below = re.sub(r'^(\.\./)+', '', value)
    for folder in (path.parent / base, Path(base), path.parent, *places.first):
        place = places.chosen([folder / value, folder / below], _is_there, f'{path}: {key} is {value!r}')
        if place is not None and place.is_dir():
            return sorted(Path(each) for each in pictures_below(str(place)))
        if place is not None:
            root = folder if is_below(folder, places.given) else place.parent
            return list(_from_list(place, root, places.given))
    if key == 'train':
        raise UserError(f'{path}: train is {value!r}, which is not there (seen from {path.parent / base}); correct it, '
                        'or path')
    notes.append(f'{path.name}: {key} is {value!r}, which is not there: left out')
    return []


def _is_there(path: Path) -> bool:
    return os.path.isdir(path) or os.path.isfile(path)


def _from_list(path: Path, root: Path, given: Sequence[Path] = ()) -> Iterator[Path]:
    """The pictures that a list names, a path a line, below ``root`` or the folders that a person gave."""
    places = PicturePlaces(root)
    places.given += given
    for line in filter(None, map(str.strip, path.read_text(encoding='utf-8', errors='replace').splitlines())):
        yield places.find(line, path) or Path(line)


def _listed(path: Path, files: Files, hints: Hints) -> Iterator[Path]:
    return _from_list(path, hints.images or files.root)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding='utf-8', errors='replace'), yaml.BaseLoader)  # 'no' stays a text
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = f', line {mark.line + 1}' if mark else ''
        said = getattr(error, 'problem', None) or str(error).splitlines()[0]
        raise UserError(f'{path}{line}: this is no valid YAML ({said}); correct it') from error
    return content if isinstance(content, dict) else {}


def _is_set(path: Path) -> bool:
    try:
        content = _content(path)
    except UserError:
        return False
    return 'names' in content and any(key in content for key in SPLITS)


def _first_line(path: Path) -> str:
    with path.open(encoding='utf-8', errors='replace') as stream:
        return next((line.strip() for line in stream if line.strip()), '')


def _names_picture(line: str) -> bool:
    return line.lower().endswith(PICTURE_SUFFIXES)
