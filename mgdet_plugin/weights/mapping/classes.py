"""New classes for an imported model: who they are, and which class of the file each one is.

A number and files of names and of annotations are read without mmdet, whose import takes seconds.
"""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import FORMS, MAX_CLASSES, checked_names, registered_names, text_names
from mgdet_plugin.common.resources import own_config
from mgdet_plugin.weights.mapping.class_names import (
    ClassRows,
    all_rows,
    colliding_names,
    listed,
    match_classes,
    new_rows,
)

ROW_STD = 0.01
SEED = 0
COCO_CLASSES = 80
ADD_CLASSES = '--add-classes'


@dataclass(frozen=True)
class TargetClasses:
    """The C classes to import for."""

    count: int
    names: tuple[str, ...] | None = None  # None where only their number was given


def parse_classes(given: str | int | Path, option: str = '--classes') -> TargetClasses:
    """Read what ``--classes`` takes.

    Args:
        given: A number of classes; the path of a text file with one name a line (empty lines are skipped), of a COCO
            annotation file (its ``categories``, in the order of the file as mmdet numbers them) or of a config or
            the name of one of the package (the classes it trains on); or the name of a registered dataset class (the
            classes of its ``METAINFO``).
        option: The option it was given to, for messages.

    Raises:
        UserError: The number is out of range; there is no such file or dataset; it has no class names, too many, one
            twice or one that cannot be printed.
    """
    text = str(given)
    origin = f'{option} {text}'
    if re.fullmatch(r'[+-]?\d{1,18}', text.strip()):
        count = int(text)
        if not 1 <= count <= MAX_CLASSES:
            raise UserError(f'{origin}: the number of classes must be from 1 to {MAX_CLASSES:,}')
        return TargetClasses(count)
    path = Path(text) if Path(text).is_file() else own_config(text) or Path(text)
    if path.is_file():
        names = dict(json=coco_names, py=config_names).get(path.suffix.lower()[1:], text_names)(path, origin)
    else:
        names = registered_names(text, origin)
    return TargetClasses(len(names), names)


def source_names(given: str | int | Path | None, in_file: int) -> tuple[str, ...] | None:
    """Names of the classes a file was trained on, in the order of its rows.

    Args:
        given: What ``--source-classes`` takes, the forms of ``--classes`` but a number. Default: COCO's names for a
            file of 80 classes, and None for another.
        in_file: Classes of the file.

    Raises:
        UserError: As :func:`parse_classes`; a number was given, or another number of names than the file has classes.
    """
    option = '--source-classes'
    if given is None:
        return registered_names('CocoDataset', option) if in_file == COCO_CLASSES else None
    names = parse_classes(given, option).names
    if names is None:
        raise UserError(f'{option} {given}: a number has no names; give {FORMS}')
    if len(names) != in_file:
        raise UserError(f'{option} {given}: {len(names):,} names, but the file was trained on {in_file:,} classes')
    return names


def class_rows(target: TargetClasses | None, source: Sequence[str] | None, in_file: int) -> ClassRows:
    """Where the row of every class comes from: from the class of that name in the file, or drawn anew.

    ``target`` None keeps all classes of the file; ``source`` is None where their names are not known.
    """
    if target is None:
        return all_rows(source, in_file)
    if target.names is None:
        return new_rows((None,) * target.count, 'only the number of classes is known, so all class rows are new; name '
                        'them with --classes to keep the rows of classes the file knows')
    if source is None:
        return new_rows(target.names, "the names of the file's classes are not known, so all class rows are new; give "
                        'them with --source-classes to keep rows by name')
    return match_classes(target.names, source)


def added_rows(added: TargetClasses, source: Sequence[str] | None, in_file: int) -> ClassRows:
    """All rows of a file of ``in_file`` classes in their places, and after them those of added classes.

    Raises:
        UserError: The names of the file's classes (``source``) or of the added ones are not known, the file knows one
            of these, or all together are too many.
    """
    if added.names is None:
        raise UserError(f'{ADD_CLASSES} {added.count}: a number has no names; give {FORMS}')
    if source is None:
        raise UserError(f"{ADD_CLASSES}: the names of the file's {in_file:,} classes are not known, so what is new to "
                        'it cannot be told; give them with --source-classes')
    known = [name if name == source[row] else f'{name} (it calls it {source[row]})'
             for name, row in zip(added.names, match_classes(added.names, source).sources, strict=True)
             if row is not None]
    if known:
        raise UserError(f'{ADD_CLASSES}: the file knows {listed(known)} already; list new classes alone, or all that '
                        'you want with --classes')
    names = (*source, *added.names)
    if len(names) > MAX_CLASSES:
        raise UserError(f'{ADD_CLASSES}: {in_file:,} classes of the file and {added.count:,} new ones, at most '
                        f'{MAX_CLASSES:,} are taken')
    return ClassRows(names, (*range(in_file), *(None,) * added.count), tuple(source), tuple(colliding_names(names)))


def coco_names(path: Path, origin: str) -> tuple[str, ...]:
    """Names of the ``categories`` of a COCO annotation file; nothing else in it matters."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{origin}: cannot be read as JSON: {error}') from error
    categories = content.get('categories') if isinstance(content, dict) else None
    if not isinstance(categories, list) or not all(isinstance(entry, dict) and 'name' in entry for entry in categories):
        raise UserError(f'{origin}: no COCO annotation file, it has no list "categories" of entries with a name')
    return checked_names([entry['name'] for entry in categories], origin)


def config_names(path: Path, origin: str) -> tuple[str, ...]:
    """Classes a config trains on: of its train dataset, looked for inside wrappers, or its top-level ``metainfo``."""
    from mmengine.config import Config

    from mgdet_plugin.datasets.formats.annotation_check import dataset_names, iter_dataset_cfgs, metainfo_names
    config = Config.fromfile(path)
    try:
        datasets = list(iter_dataset_cfgs((config.get('train_dataloader') or {}).get('dataset')))
    except (AttributeError, TypeError) as error:
        raise UserError(f'{origin}: the train_dataloader cannot be read: {type(error).__name__}: {error}') from error
    found = list(dict.fromkeys(dataset_names(dataset, origin) for dataset in datasets))
    found += filter(None, [] if datasets else [metainfo_names(config.get('metainfo'), origin)])
    if not found:
        raise UserError(f'{origin}: the config names no classes; it needs train_dataloader.dataset or metainfo.classes')
    if len(found) > 1:
        raise UserError(f'{origin}: the datasets of train_dataloader have different classes ({len(found[0])} beginning '
                        f'{found[0][0]!r} and {len(found[1])} beginning {found[1][0]!r}); give a file of names')
    return found[0]
