"""What a COCO annotation file holds, read as mmdet's CocoDataset reads it, with everything it hides said aloud.

CocoDataset drops classes, categories and boxes without a word, or ends in a traceback. What cannot be trained on is one
:class:`UserError` line here, and what is left out is counted.
"""
from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError, is_number
from mgdet_plugin.common.files import LONGEST_PATH
from mgdet_plugin.common.records import shown
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, ImageRecord, some
from mgdet_plugin.datasets.formats.file_places import annotation_bytes
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

_COCO_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}
_INT_END = 2 ** 63  # of what a tensor can hold
_READ = {*_COCO_KEYS, *(key for keys in _COCO_KEYS.values() for key in keys), 'iscrowd', 'ignore'}
_MOST = 2 ** 32  # bytes of a file


def load_coco(path: Path, test_mode: bool = False) -> dict[str, Any]:
    """Read a COCO file and check the fields that mmdet and pycocotools read.

    If it is evaluated on (``test_mode``), ``iscrowd`` is needed and ``annotations`` may be missing.

    Raises:
        UserError: not JSON, not COCO, too large, or an entry without a field it needs, with one twice or with an id
            that is none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; JSON has no word on which of two values counts."""
        entry = dict(pairs)
        if len(entry) < len(pairs):
            repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1 and key in _READ]
            if repeated:
                raise UserError(f'{path}: an object ({_shown(entry)}) has {some(list(map(repr, repeated)))} twice; '
                                'leave one of them')
        return entry

    try:
        content = json.loads(annotation_bytes(path, _MOST), object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not valid JSON ({error}); write it again or point ann_file elsewhere') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a COCO file: an object with images, annotations and categories is needed, '
                        f'got a {type(content).__name__}')
    there = some(sorted(content))
    if test_mode:
        content.setdefault('annotations', [])
    for part, keys in _COCO_KEYS.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            raise UserError(f'{path} is not a COCO file: no list {part!r} (it has: {there})')
        needed = (*keys, 'iscrowd') if part == 'annotations' and test_mode else keys
        for index, entry in enumerate(entries):
            missing = [key for key in needed if not isinstance(entry, Mapping) or key not in entry]
            if missing:
                raise UserError(f'{path}: {part}[{index}] has no {some(missing)}; mmdet needs {some(needed)} in each')
        _check_ids(path, part, entries)
    for index, image in enumerate(content['images']):
        if not _is_path(image['file_name']):
            raise UserError(f'{path}: images[{index}] has file_name {shown(image["file_name"])}; the path of a '
                            'picture below the image folder is needed')
        if not all(is_number(image[side]) and 0 < image[side] < _INT_END for side in ('width', 'height')):
            raise UserError(f'{path}: images[{index}] has width {image["width"]!r:.40} and height '
                            f'{image["height"]!r:.40}; pixels above zero are needed')
    return content


def _check_ids(path: Path, part: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Ids must be finite numbers, or all texts: what reads the file sorts them."""
    for index, entry in enumerate(entries):
        value = entry['id']
        if not isinstance(value, str) and not (is_number(value) and -math.inf < value < math.inf):
            raise UserError(f'{path}: {part}[{index}] has id {value!r:.40}; a number or a text is needed')
    if len({isinstance(entry['id'], str) for entry in entries}) > 1:
        raise UserError(f'{path}: some ids in {part!r} are texts and some are numbers; make them one or the other')


def _shown(entry: Mapping[str, Any]) -> str:
    """An object in short, by its id where it has one."""
    return f'id {entry["id"]!r:.40}' if 'id' in entry else f'{some(sorted(entry), 4)}'


def _is_path(value: Any) -> bool:
    """Whether it is a text that can name a file: of a length that systems take, no NUL, no half of a surrogate pair."""
    return (isinstance(value, str) and 0 < len(value) < LONGEST_PATH and '\0' not in value
            and not re.search('[\ud800-\udfff]', value))


def summarize_coco(path: Path, classes: Sequence[str], content: dict[str, Any]) -> DatasetReport:
    """What the content of a COCO file holds for a dataset's metainfo classes; the path is for messages.

    Raises:
        UserError: classes that are not in the file or in another order, repeated ids, or an annotation of an
            unknown image or category, with a box that is not four numbers, or an area or a flag that is none.
    """
    _check_coco_classes(path, classes, content)
    report = DatasetReport(source=path, classes=classes, records=[
        ImageRecord(image['id'], image['file_name'], (image['width'], image['height'])) for image in content['images']])
    images = {record.image_id: record for record in report.records}
    names = {category['id']: category['name'] for category in content['categories']}
    repeated = len(content['annotations']) - len({annotation['id'] for annotation in content['annotations']})
    if repeated or len(images) < len(content['images']):
        part = 'annotations' if repeated else 'images'
        raise UserError(f'{path}: ids in {part!r} are not unique; give each entry its own id')
    chosen = set(classes)
    for annotation in content['annotations']:
        _check_coco_annotation(path, annotation, images, names)
        if annotation.get('ignore', False):
            continue
        name = names[annotation['category_id']]
        if name in chosen:
            _count_coco_box(report, annotation, name, images[annotation['image_id']])
        else:
            report.other_classes[name] += 1
    return report


def _check_coco_classes(path: Path, classes: Sequence[str], content: dict[str, Any]) -> None:
    """The chosen classes must be categories of the file, in the file's order: mmdet numbers labels by that order."""
    in_file = [category['name'] for category in content['categories']]
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise UserError(f'{path} has no category {some(missing)} (it has: {some(in_file)}); set '
                        'metainfo=dict(classes=(...)) of the dataset to names of the file, or add the categories to '
                        'it, as complete_labels.py does')
    ordered = [name for name in in_file if name in set(classes)]
    if ordered != list(classes):
        raise UserError(f'{path}: the classes are ({some(classes)}) but mmdet numbers labels in the order of the '
                        f'file ({some(ordered)}); write metainfo classes in that order, each name once')


def _check_coco_annotation(path: Path, annotation: Mapping[str, Any], images: Mapping[Any, Any],
                           names: Mapping[Any, str]) -> None:
    """One annotation must point at an image and a category of the file and carry a box of four numbers."""
    label = f'{path}: annotation {annotation["id"]}'
    for key, known in (('image_id', images), ('category_id', names)):
        if isinstance(annotation[key], (bool, list, dict)) or annotation[key] not in known:  # true is 1 to Python
            raise UserError(f'{label} names {key} {shown(annotation[key])}, which the file does not define')
    values = annotation['bbox']
    if not isinstance(values, list) or len(values) != 4 or not all(
            is_number(v) and (isinstance(v, float) or abs(v) < _INT_END) for v in values):
        raise UserError(f'{label} has bbox {str(values)[:80]}; four numbers [x, y, width, height] are needed')
    if not is_number(annotation['area']) or annotation['area'] >= _INT_END:
        raise UserError(f'{label} has area {annotation["area"]!r:.40}; a number of pixels is needed')
    for key, meant in (('iscrowd', (0, 1)), ('ignore', (0, 1, None))):
        if annotation.get(key, 0) not in meant:  # mmdet ignores the object for any text, '0' included
            raise UserError(f'{label} has {key} {annotation[key]!r:.40}; 0 or 1 is needed')


def _count_coco_box(report: DatasetReport, annotation: Mapping[str, Any], name: str, record: ImageRecord) -> None:
    x, y, w, h = annotation['bbox']
    reason = degenerate_reason((x, y, x + w, y + h), record.size)
    if reason is None and not annotation['area'] > 0:
        reason = 'area not above zero'
    # comparisons with NaN are false: CocoDataset lets such a box pass
    report.count(record, name, annotation['bbox'], reason, 'not a number' not in (reason or ''))
