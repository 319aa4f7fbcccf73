"""What VOC annotation files hold, read as mmdet's XMLDataset reads them, with everything it hides said aloud."""
from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import is_below
from mgdet_plugin.datasets.formats.box_sense import BoxSense
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, ImageRecord, some
from mgdet_plugin.datasets.formats.file_places import annotation_bytes
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

_WHOLE_LINE = (", and mmdet takes a whole line as an image's name; awk 'NF && $2 != -1 {print $1}' OLD > NEW makes a "
               'list of names alone of one with flags, spaces or blank lines')
_FAR = 2.0 ** 31  # pixels; XMLDataset makes whole numbers of them, which a tensor must hold
_SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
_OF_AN_OBJECT = ('name', 'difficult', *(f'bndbox/{side}' for side in _SIDES))
_MOST = 2 ** 26  # bytes of the annotations of one picture


def read_voc_list(path: Path) -> list[str]:
    """The image names of a list file, a whole line each as XMLDataset takes them.

    Raises:
        UserError: it is not text, empty, or names an image twice.
    """
    try:
        names = [line.rstrip('\r\n') for line in StringIO(path.read_text(encoding='utf-8'))]
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is no list of image names: it is not text ({error})') from error
    if not names:
        raise UserError(f'{path} names no image; write one name a line')
    image, count = Counter(names).most_common(1)[0]
    if count > 1 and image.strip():
        raise UserError(f'{path}: the name {image!r} is there twice or more; keep one of each (RepeatDataset shows '
                        'images more often)')
    return names


def summarize_voc(list_file: Path, xml_folder: Path, classes: Sequence[str]) -> DatasetReport:
    """What the files ``<image name>.xml`` of a list hold for ``classes``, coordinates as XMLDataset reads them.

    Raises:
        UserError: a missing or malformed file, or no object at all of the chosen classes.
    """
    report = DatasetReport(source=xml_folder, classes=classes, sense=BoxSense(corners=True))
    chosen = set(classes)
    for number, image_id in enumerate(read_voc_list(list_file), 1):
        path = xml_folder / f'{image_id}.xml'
        if not is_below(path, [xml_folder]):
            raise UserError(f'{list_file}, line {number}: {image_id!r} leads out of {xml_folder}; a list names files '
                            'below that folder alone')
        if not os.path.isfile(path):  # a pipe is none: opening it would wait for ever
            raise UserError(f'VOC annotation {path} is missing or no file; line {number} of {list_file} is '
                            f'{image_id!r}' + (_WHOLE_LINE if image_id.split() != [image_id] else ''))
        root = voc_root(path)
        _check_once(path, 'it', root, ('size/width', 'size/height'))
        record = ImageRecord(image_id, f'{image_id}.jpg', voc_image_size(path, root))
        report.records.append(record)
        for index, element in enumerate(root.findall('object')):
            _check_once(path, f'object {index}', element, _OF_AN_OBJECT)
            name = element.findtext('name')
            if name is None:
                raise UserError(f'{path}: object {index} has no name')
            if name not in chosen and name.strip() in chosen:
                raise UserError(f'{path}: object {index} is named {name!r}, and XMLDataset takes the spaces for a part '
                                'of the name; take them out of the files, or give the data to init, which does')
            if name not in chosen:
                report.other_classes[name] += 1
                continue
            values = voc_box(path, index, element)
            reason = degenerate_reason([int(value) - 1 for value in values], record.size)
            report.count(record, name, values, reason, by_dataset=False)
    if report.other_classes and not report.boxes:
        raise UserError(f'{xml_folder}: no object is one of the classes {some(classes)} (the files name: '
                        f'{some(report.other_names())}); set metainfo=dict(classes=(...)) to those names')
    return report


def _check_once(path: Path, owner: str, element: ET.Element, tags: Sequence[str]) -> None:
    """An element that is read must be there once at most: XMLDataset takes the first."""
    for tag in tags:
        if len(element.findall(tag)) > 1:
            raise UserError(f'{path}: {owner} has {tag} twice; leave one of them')


def voc_root(path: Path) -> ET.Element:
    """The root of an annotation file.

    Raises:
        UserError: it is no XML.
    """
    try:
        return ET.fromstring(annotation_bytes(path, _MOST))
    except UserError:
        raise
    except (ET.ParseError, ValueError, LookupError) as error:  # the latter two: encodings that cannot be read
        raise UserError(f'{path} is not valid XML ({error}); write it again, in UTF-8') from error


def voc_image_size(path: Path, root: ET.Element) -> tuple[int, int] | None:
    """(w, h) in pixels from ``size``; None without one: mmdet then measures the image."""
    if root.find('size') is None:
        return None
    texts = [root.findtext(f'size/{side}') or '' for side in ('width', 'height')]
    try:
        width, height = (int(text) for text in texts)
    except ValueError:
        width = height = 0
    if min(width, height) <= 0:
        raise UserError(f'{path}: size must be whole pixels above zero, got {" x ".join(map(repr, texts))}; '
                        'correct it or remove the size element (mmdet then measures the image)')
    return width, height


def voc_box(path: Path, index: int, element: ET.Element) -> list[float]:
    """``[xmin, ymin, xmax, ymax]`` of one object as they are written; XMLDataset cuts them to whole pixels."""
    box: list[float] = []
    difficult = element.findtext('difficult', '0')
    if not difficult.strip().isdecimal():
        raise UserError(f'{path}: object {index} has difficult {difficult!r}; 0 or 1 is needed')
    for side in _SIDES:
        text = element.findtext(f'bndbox/{side}')
        try:
            value = float(text or '')
            if abs(value) >= _FAR:
                raise ValueError
            box.append(int(value) if int(value) == value else value)
        except (ValueError, OverflowError):
            raise UserError(f'{path}: object {index} has {side} {text!r}; a number is needed') from None
    return box
