"""Lists of class names: what counts as one, and files that hold one. Imports nothing heavy."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError

MAX_CLASSES = 10_000
MAX_NAMES_BYTES = 2 ** 20
FORMS = ('a file of names (one a line), a COCO annotation .json, a config .py or a registered dataset such as '
         'CocoDataset or VOCDataset')


def text_names(path: Path, origin: str) -> tuple[str, ...]:
    """Read a file of class names, one a line."""
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise UserError(f'{origin}: larger than {MAX_NAMES_BYTES:,} bytes, no list of class names')
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{origin}: cannot be read as text: {error}') from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f'{origin}: the file has no class names; write one name a line')
    return checked_names(names, origin)


def checked_names(names: Any, origin: str) -> tuple[str, ...]:
    """The names as a tuple, having refused what no class list can hold."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{origin}: class names must be a list of texts, got {str(names)[:80]!r}')
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(f'{origin}: {len(names):,} names, from 1 to {MAX_CLASSES:,} are taken')
    unprintable = next((name for name in names if not name.strip() or not name.isprintable()), None)
    if unprintable is not None:
        raise UserError(f'{origin}: the class name {unprintable[:80]!r} is empty or cannot be printed')
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f'{origin}: it names a class twice: {", ".join(twice[:5])}')
    return tuple(names)


def registered_names(name: str, origin: str) -> tuple[str, ...]:
    """Classes of a dataset class in mmdet's registry."""
    dataset = None
    if re.fullmatch(r'(mmdet\.)?[A-Za-z_]\w*', name):
        from mmdet.registry import DATASETS  # here: the rest is known without mmdet
        dataset = DATASETS.get(name)
    if dataset is None:
        raise UserError(f'{origin}: neither a number of classes, a file nor a registered dataset; give {FORMS}')
    return class_metainfo(dataset, name, origin)


def class_metainfo(dataset: Any, name: str, origin: str) -> tuple[str, ...]:
    """Classes of a dataset class's ``METAINFO``."""
    metainfo = getattr(dataset, 'METAINFO', None)
    if not isinstance(metainfo, Mapping) or not metainfo.get('classes'):
        raise UserError(f'{origin}: the dataset {name} names no classes by itself; set metainfo.classes of the dataset '
                        'in the config, or give a file of names')
    return checked_names(metainfo['classes'], origin)
