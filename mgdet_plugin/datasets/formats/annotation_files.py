"""What a COCO or VOC annotation file holds, read the way mmdet reads it, with everything mmdet hides said aloud.

CocoDataset and XMLDataset drop classes, categories and boxes without a word, or end in a traceback. The readers here
raise one :class:`UserError` line for what cannot be trained on and count what is left out.
"""
from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

_COCO_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}


@dataclass
class DatasetReport:
    """What the annotations of one dataset hold for its classes.

    Attributes:
        name: ``train``, ``val`` or ``test``, with a number where a wrapper holds several.
        file_names: the images, relative to the image folder.
        boxes: boxes of its classes, the skipped ones included.
        skipped: reason -> number of degenerate boxes, which never reach the model.
        first_skipped: the first of them, ``image NAME, [...]``.
        left_to_transform: how many of them mmdet's dataset does not skip by itself.
        other_classes: class name -> boxes left out because metainfo does not list the class.
        note: why nothing was read, where that is so.
    """

    name: str = ''
    file_names: list[str] = field(default_factory=list)
    boxes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: str = ''
    left_to_transform: int = 0
    other_classes: Counter[str] = field(default_factory=Counter)
    note: str = ''

    @property
    def images(self) -> int:
        """Number of images its annotations name."""
        return len(self.file_names)

    def count(self, reason: str | None, image: str, box: object, by_dataset: bool) -> None:
        """Count one box, degenerate where there is a reason; ``by_dataset``: then mmdet's dataset skips it."""
        self.boxes += 1
        if reason is not None:
            self.first_skipped = self.first_skipped or f'image {image}, {box}'
            self.skipped[reason] += 1
            self.left_to_transform += not by_dataset

    def lines(self) -> list[str]:
        """The lines to log; empty when there is nothing a person should know."""
        lines = [f'{self.name}: {self.note}'] if self.note else []
        if self.skipped:
            reasons = list(self.skipped.items())
            text = reasons[0][0] if len(reasons) == 1 else ', '.join(f'{count:,} {why}' for why, count in reasons)
            lines.append(f'{self.name}: {self.skipped.total():,} of {self.boxes:,} boxes skipped: {text} '
                         f'(first: {self.first_skipped})')
        if self.other_classes:
            lines.append(f'{self.name}: {self.other_classes.total():,} boxes left out, their classes are not in '
                         f'metainfo: {some(sorted(self.other_classes))}')
        return lines


def some(names: Sequence[object], limit: int = 10) -> str:
    """A list of names for one line, cut after ``limit``."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(str(name) for name in names[:limit]) + more


def load_coco(path: Path, test_mode: bool = False) -> dict[str, Any]:
    """Read a COCO file and check the fields that mmdet and pycocotools read.

    If it is evaluated on (``test_mode``), ``iscrowd`` is needed and ``annotations`` may be missing.

    Raises:
        UserError: not JSON, not COCO, or an entry without a field it needs.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not valid JSON ({error}); write it again or point ann_file elsewhere') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a COCO file: an object with images, annotations and categories is needed, '
                        f'got a {type(content).__name__}')
    if test_mode:
        content.setdefault('annotations', [])
    for part, keys in _COCO_KEYS.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            raise UserError(f'{path} is not a COCO file: no list {part!r} (it has: {some(sorted(content))})')
        needed = (*keys, 'iscrowd') if part == 'annotations' and test_mode else keys
        for index, entry in enumerate(entries):
            missing = [key for key in needed if not isinstance(entry, Mapping) or key not in entry]
            if missing:
                raise UserError(f'{path}: {part}[{index}] has no {some(missing)}; mmdet needs {some(needed)} in each')
    return content


def summarize_coco(path: Path, classes: Sequence[str], content: dict[str, Any]) -> DatasetReport:
    """What the content of a COCO file holds for a dataset's metainfo classes; the path is for messages.

    Raises:
        UserError: classes that are not in the file or in another order, repeated ids, or an annotation of an
            unknown image or category or with a box that is not four numbers.
    """
    _check_coco_classes(path, classes, content)
    try:
        images = {image['id']: image for image in content['images']}
        names = {category['id']: category['name'] for category in content['categories']}
        repeated = len(content['annotations']) - len({annotation['id'] for annotation in content['annotations']})
    except TypeError as error:
        raise UserError(f'{path}: ids must be numbers or texts ({error})') from error
    if repeated or len(images) < len(content['images']):
        part = 'annotations' if repeated else 'images'
        raise UserError(f'{path}: ids in {part!r} are not unique; give each entry its own id')
    report = DatasetReport(file_names=[image['file_name'] for image in content['images']])
    chosen = set(classes)
    for annotation in content['annotations']:
        _check_coco_annotation(path, annotation, images, names)
        if annotation.get('ignore', False):
            continue
        name = names[annotation['category_id']]
        if name in chosen:
            _count_coco_box(report, annotation, images[annotation['image_id']])
        else:
            report.other_classes[name] += 1
    return report


def _check_coco_classes(path: Path, classes: Sequence[str], content: dict[str, Any]) -> None:
    """The chosen classes must be categories of the file, in the file's order: mmdet numbers labels by that order."""
    in_file = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise UserError(f'{path} has no category {some(missing)} (it has: {some(in_file)}); set '
                        'metainfo=dict(classes=(...)) of the dataset to names of the file')
    ordered = [name for name in in_file if name in set(classes)]
    if ordered != list(classes):
        raise UserError(f'{path}: the classes are ({some(classes)}) but mmdet numbers labels in the order of the '
                        f'file ({some(ordered)}); write metainfo classes in that order, each name once')


def _check_coco_annotation(path: Path, annotation: Mapping[str, Any], images: Mapping[Any, Any],
                           names: Mapping[Any, str]) -> None:
    """One annotation must point at an image and a category of the file and carry a box of four numbers."""
    label = f'{path}: annotation {annotation["id"]}'
    for key, known in (('image_id', images), ('category_id', names)):
        if annotation[key] not in known:
            raise UserError(f'{label} names {key} {annotation[key]!r}, which the file does not define')
    values = annotation['bbox']
    if not isinstance(values, list) or len(values) != 4 or not all(isinstance(v, (int, float)) for v in values):
        raise UserError(f'{label} has bbox {values!r}; four numbers [x, y, width, height] are needed')
    if not isinstance(annotation['area'], (int, float)):
        raise UserError(f'{label} has area {annotation["area"]!r}; a number is needed')


def _count_coco_box(report: DatasetReport, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> None:
    x, y, w, h = annotation['bbox']
    reason = degenerate_reason((x, y, x + w, y + h), (image['width'], image['height']))
    if reason is None and not annotation['area'] > 0:
        reason = 'area not above zero'
    # comparisons with NaN are false: CocoDataset lets such a box pass
    report.count(reason, image['file_name'], annotation['bbox'], 'not a number' not in (reason or ''))


def summarize_voc(image_ids: Sequence[str], xml_folder: Path, classes: Sequence[str]) -> DatasetReport:
    """What the files ``<image id>.xml`` of some images hold for ``classes``, coordinates as XMLDataset reads them.

    Raises:
        UserError: a missing or malformed file, or no object at all of the chosen classes.
    """
    report = DatasetReport(file_names=[f'{image_id}.jpg' for image_id in image_ids])
    chosen = set(classes)
    for image_id, file_name in zip(image_ids, report.file_names, strict=True):
        path = xml_folder / f'{image_id}.xml'
        try:
            root = ET.parse(path).getroot()
        except FileNotFoundError:
            raise UserError(f'VOC annotation {path} is missing; the list of images names it') from None
        except ET.ParseError as error:
            raise UserError(f'{path} is not valid XML ({error}); write it again') from error
        size = _voc_image_size(path, root)
        for index, element in enumerate(root.findall('object')):
            name = element.findtext('name')
            if name is None:
                raise UserError(f'{path}: object {index} has no name')
            if name not in chosen:
                report.other_classes[name] += 1
                continue
            box = _voc_box(path, index, element)
            report.count(degenerate_reason([value - 1 for value in box], size), file_name, box, by_dataset=False)
    if report.other_classes and not report.boxes:
        raise UserError(f'{xml_folder}: no object is one of the classes {some(classes)} (the files name: '
                        f'{some(sorted(report.other_classes))}); set metainfo=dict(classes=(...)) to those names')
    return report


def _voc_image_size(path: Path, root: ET.Element) -> tuple[int, int] | None:
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


def _voc_box(path: Path, index: int, element: ET.Element) -> list[int]:
    """``[xmin, ymin, xmax, ymax]`` of one object, whole pixels as XMLDataset cuts them."""
    box = []
    for side in ('xmin', 'ymin', 'xmax', 'ymax'):
        text = element.findtext(f'bndbox/{side}')
        try:
            box.append(int(float(text or '')))
        except (ValueError, OverflowError):
            raise UserError(f'{path}: object {index} has {side} {text!r}; a number is needed') from None
    return box
