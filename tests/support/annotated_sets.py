"""Small sets of pictures on disk, and their annotations written in each format that `mgdet init` reads."""
from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from mgdet_plugin.datasets.sources.annotated import Picture

CLASSES = ('ant', 'bee', 'sea cow')


def picture(path: Path, size: tuple[int, int] = (64, 48), shade: int = 90) -> Path:
    """A picture of (w, h) pixels; those of one shade and size are copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(path)
    return path


def write_coco(folder: Path, pictures: Sequence[Picture], name: str = 'instances.json',
               classes: Sequence[str] = CLASSES) -> Path:
    """A COCO file; pictures are named by the end of their paths."""
    boxes = [(image, box) for image, each in enumerate(pictures) for box in each.boxes]
    content = dict(
        images=[dict(id=index, file_name=each.path.name, width=64, height=48) for index, each in enumerate(pictures)],
        categories=[dict(id=index, name=each, supercategory='none') for index, each in enumerate(classes)],
        annotations=[dict(id=index, image_id=image, category_id=list(classes).index(box.name), bbox=list(box.bbox),
                          area=box.bbox[2] * box.bbox[3], iscrowd=int(box.ignore))
                     for index, (image, box) in enumerate(boxes)])
    return _written(folder / name, json.dumps(content))


def write_voc(folder: Path, pictures: Sequence[Picture], first: int = 1) -> list[Path]:
    """An XML file a picture, coordinates from ``first``."""
    files = []
    for each in pictures:
        objects = ''.join(
            f'<object><name>{escape(box.name)}</name><difficult>{int(box.ignore)}</difficult><bndbox>' + ''.join(
                f'<{side}>{value + first}</{side}>' for side, value in zip(
                    ('xmin', 'ymin', 'xmax', 'ymax'),
                    (box.bbox[0], box.bbox[1], box.bbox[0] + box.bbox[2], box.bbox[1] + box.bbox[3]))) +
            '</bndbox></object>' for box in each.boxes)
        files.append(_written(folder / f'{each.path.stem}.xml', f'<annotation><filename>{escape(each.path.name)}'
                              f'</filename>{objects}</annotation>'))
    return files


def write_yolo(folder: Path, pictures: Sequence[Picture], size: tuple[int, int] = (64, 48)) -> None:
    """A label file a picture."""
    for each in pictures:
        lines = [f'{CLASSES.index(box.name)} ' + ' '.join(repr(float(value)) for value in (
            (box.bbox[0] + box.bbox[2] / 2) / size[0], (box.bbox[1] + box.bbox[3] / 2) / size[1],
            box.bbox[2] / size[0], box.bbox[3] / size[1])) for box in each.boxes]
        _written(folder / f'{each.path.stem}.txt', '\n'.join(lines))


def write_lines(path: Path, pictures: Sequence[Picture]) -> Path:
    """The TensorFlow project's lines, paths in full."""
    return _written(path, ''.join(
        str(each.path) + ''.join(f' {x},{y},{x + w},{y + h},{CLASSES.index(box.name)}' for box in each.boxes
                                 for x, y, w, h in [box.bbox]) + '\n' for each in pictures))


def write_csv(path: Path, pictures: Sequence[Picture], header: Sequence[str] = (
        'filename', 'width', 'height', 'class', 'xmin', 'ymin', 'xmax', 'ymax')) -> Path:
    """A table of boxes; rows are written for the default header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as stream:
        rows = csv.writer(stream)
        rows.writerow(header)
        for each in pictures:
            for box in each.boxes:
                x, y, w, h = box.bbox
                rows.writerow([each.path.name, 64, 48, box.name, x, y, x + w, y + h])
            if not each.boxes:
                rows.writerow([each.path.name, 64, 48, '', '', '', '', ''])
    return path


def write_names(path: Path) -> Path:
    """A file of the class names."""
    return _written(path, '\n'.join(CLASSES) + '\n')


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
