"""COCO files: one, one a split, or one in each split's folder as annotation services export them."""
from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.datasets.formats.coco_files import load_coco, summarize_coco
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Files, Hints, Picture
from mgdet_plugin.datasets.sources.picture_places import PicturePlaces

LOOKS = 'a .json with images, annotations and categories'
_START = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_SNIFFED = 2 ** 16  # bytes


def find(files: Files) -> list[Path]:
    """The COCO files; of several of one split those named ``instances``, as in COCO itself."""
    found = []
    for path in files.ending('.json'):
        with path.open('rb') as stream:
            if _START.search(stream.read(_SNIFFED)):
                found.append(path)
    splits = Counter(map(files.split_of, found))
    return [path for path in found if splits[files.split_of(path)] == 1 or path.stem.startswith('instances')] or found


def read(files: Files, found: list[Path], hints: Hints) -> Annotated:
    """Read them.

    Raises:
        UserError: two files of one split, a file that is no COCO file, or other class names than the hints'.
    """
    splits = [files.split_of(path) if len(found) > 1 else files.split_of(path) or None for path in found]
    if len(set(splits)) < len(splits):
        raise UserError(f'{files.given} holds {len(found)} COCO files ({files.shown(found)}), and their names do not '
                        'tell one train, val and test set; give one of the files in place of the folder')
    places = PicturePlaces(files.root, hints.images)
    contents = [load_coco(path) for path in found]
    names: dict[str, None] = {}
    pictures, missing, notes, used = [], [], [], set()
    for path, split, content in zip(found, splits, contents):
        checked_names([category['name'] for category in content['categories']], f'{path}: categories')
        summarize_coco(path, [category['name'] for category in content['categories']], content)
        names |= dict.fromkeys(category['name'] for category in content['categories'])
        boxes, ignored = _boxes(content)
        if ignored:
            notes.append(f'{path.name}: {ignored:,} annotations marked "ignore" left out, as mmdet does')
        used |= {box.name for each in boxes.values() for box in each}
        for image in content['images']:
            place = places.find(image['file_name'], path)
            if place is None:
                missing.append(image['file_name'])
            else:
                pictures.append(Picture(place, tuple(boxes[image['id']]), split, (image['width'], image['height'])))
    above = {str(category.get('supercategory')) for content in contents for category in content['categories']}
    groups = [name for name in names if name in above and name not in used]
    if groups and used:
        notes.append(f'class left out: {some(groups)} is the group of other classes and has no box')
    classes = tuple(name for name in names if not used or name not in groups)
    return Annotated(f'COCO ({files.shown(found)})', files.given, _chosen(classes, hints), tuple(pictures),
                     tuple(missing), tuple(notes))


def _chosen(classes: tuple[str, ...], hints: Hints) -> tuple[str, ...]:
    if hints.classes is not None and set(hints.classes) != set(classes):
        raise UserError(f'--classes names {some(hints.classes)}, the annotations {some(classes)}; leave --classes out, '
                        'or name the same')
    return hints.classes or classes


def _boxes(content: Mapping[str, Any]) -> tuple[defaultdict[Any, list[Box]], int]:
    """Image id -> its boxes, and how many annotations are marked as none."""
    names = {category['id']: category['name'] for category in content['categories']}
    boxes: defaultdict[Any, list[Box]] = defaultdict(list)
    ignored = 0
    for each in content['annotations']:
        if each.get('ignore', False):
            ignored += 1
            continue
        x, y, width, height = each['bbox']
        boxes[each['image_id']].append(Box(names[each['category_id']], (x, y, width, height),
                                           bool(each.get('iscrowd')), each['area']))
    return boxes, ignored
