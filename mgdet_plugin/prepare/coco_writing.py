"""A set as COCO files, one a split, and the proof that every box arrived in them."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mgdet_plugin.common.files import write_together
from mgdet_plugin.datasets.formats.coco_files import load_coco
from mgdet_plugin.datasets.sources.annotated import Box, Picture

ROUNDING = 3  # decimals of a pixel


def pictures_root(pictures: Sequence[Picture]) -> Path:
    """The folder that all pictures lie below."""
    return Path(os.path.commonpath([os.path.abspath(each.path.parent) for each in pictures]))


def coco_content(pictures: Sequence[Picture], classes: Sequence[str], root: Path) -> dict[str, Any]:
    """The content of a COCO file; ids count from 1, ``file_name`` begins at ``root``."""
    ids = {name: place for place, name in enumerate(classes, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        width, height = picture.size or (0, 0)
        images.append(dict(id=image_id, file_name=_below(picture, root), width=width, height=height))
        for box in picture.boxes:
            bbox = [round(float(value), ROUNDING) for value in box.bbox]
            area = box.bbox[2] * box.bbox[3] if box.area is None else box.area
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, category_id=ids[box.name], bbox=bbox,
                                    area=round(float(area), ROUNDING), iscrowd=int(box.ignore)))
    return dict(images=images, annotations=annotations,
                categories=[dict(id=place, name=name) for name, place in ids.items()])


def write_coco(folder: Path, splits: dict[str, Sequence[Picture]], classes: Sequence[str], root: Path) -> None:
    """Write ``<split>.json`` of each split into a folder, then read them and compare every box.

    Raises:
        UserError: a file cannot be written.
        RuntimeError: a box did not arrive.
    """
    texts = {name: json.dumps(coco_content(pictures, classes, root)).encode() for name, pictures in splits.items()}
    write_together({folder / f'{name}.json': partial(_write, text) for name, text in texts.items()})
    for name, pictures in splits.items():
        prove_arrived(folder / f'{name}.json', pictures, root)


def prove_arrived(path: Path, pictures: Sequence[Picture], root: Path) -> None:
    """Hold a COCO file against what it was written from: each picture, each box in order, its class and its numbers.

    Raises:
        RuntimeError: with the first picture whose boxes are others.
    """
    content = load_coco(path, test_mode=True)
    names = {each['id']: each['name'] for each in content['categories']}
    there: dict[str, list[Box]] = {image['file_name']: [] for image in content['images']}
    by_id = {image['id']: image['file_name'] for image in content['images']}
    for each in content['annotations']:
        there[by_id[each['image_id']]].append(
            Box(names[each['category_id']], tuple(each['bbox']), bool(each['iscrowd'])))
    wanted = {_below(picture, root): picture.boxes for picture in pictures}
    if set(there) != set(wanted) or len(wanted) != len(pictures):
        raise RuntimeError(f'{path}: {len(there)} pictures arrived of {len(pictures)}')
    for name, boxes in wanted.items():
        if not _same(there[name], boxes):
            raise RuntimeError(f'{path}: the boxes of {name} are not those it was written from')


def _same(found: Sequence[Box], wanted: Sequence[Box]) -> bool:
    """Whether two lists hold the same boxes within half of the last decimal that is written."""
    allowed = 0.5 * 10 ** -ROUNDING + 1e-9
    return len(found) == len(wanted) and all(
        (one.name, one.ignore) == (other.name, other.ignore)
        and all(abs(a - b) <= allowed for a, b in zip(one.bbox, other.bbox)) for one, other in zip(found, wanted))


def _write(text: bytes, stream: BinaryIO) -> None:
    stream.write(text)


def _below(picture: Picture, root: Path) -> str:
    return Path(os.path.relpath(os.path.abspath(picture.path), root)).as_posix()
