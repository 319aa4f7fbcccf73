"""Finds out which format a folder or file of annotations has, and reads it."""
from __future__ import annotations

import os
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import PICTURE_SUFFIXES
from mgdet_plugin.datasets.formats.dataset_report import number_of, some
from mgdet_plugin.datasets.sources import coco, csv_table, lines, voc, yolo
from mgdet_plugin.datasets.sources.annotated import Annotated, Files, Hints

FORMATS = dict(coco=coco, voc=voc, yolo=yolo, lines=lines, csv=csv_table)
"""Name, as ``--format`` takes it, -> the module that finds and reads it."""


def read_annotated(data: Path, form: str | None = None, hints: Hints | None = None) -> Annotated:
    """Read annotations in whatever format they are.

    Args:
        data: a folder, searched to any depth (hidden files and folders left out), or an annotation file.
        form: one of ``FORMATS``. Default: the one that is found.
        hints: what cannot be found by itself.

    Raises:
        UserError: nothing there, no format or several, no picture, or what is there cannot be read.
    """
    if not data.exists():
        raise UserError(f'{data} is not there (seen from {os.getcwd()}); give a folder of pictures and annotations, or '
                        'an annotation file')
    hints = hints or Hints()
    if hints.images is not None and not hints.images.is_dir():
        raise UserError(f'--images {hints.images} is no folder (seen from {os.getcwd()}); give that of the pictures')
    files = list_files(data)
    found = {name: there for name, module in FORMATS.items() if form in (None, name) and (there := module.find(files))}
    if not found:
        if form in (None, 'yolo'):
            yolo.refuse_faulty(files)
        wanted = '; '.join(f'{name}: {module.LOOKS}' for name, module in FORMATS.items() if form in (None, name))
        raise UserError(f'{data} holds no annotations that are known. Looked for {wanted}. Seen: {_seen(files)}')
    if len(found) > 1:
        raise UserError(f'{data} holds several kinds of annotations: ' + '; '.join(
            f'{name} ({files.shown(there)})' for name, there in found.items()) +
            '; choose one by --format, or give its file in place of the folder')
    name, there = next(iter(found.items()))
    annotated = FORMATS[name].read(files, there, hints)
    if not annotated.pictures:
        first = f' (first: {annotated.missing[0]})' if annotated.missing else ''
        raise UserError(f'{annotated.format}: none of {number_of(len(annotated.missing), "picture")} that {data} names '
                        f'is there{first}; give their folder by --images')
    return annotated


def list_files(data: Path) -> Files:
    """The files of a folder that are no pictures, or the one file."""
    if data.is_file():
        return Files(data, data.parent, (data,))
    paths = []
    for place, folders, names in os.walk(data, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.') and not _is_loop(place, name))
        paths += [Path(place, name) for name in sorted(names)
                  if not name.startswith('.') and not name.lower().endswith(PICTURE_SUFFIXES)]
    return Files(data, data, tuple(path for path in paths if path.is_file()))


def _is_loop(place: str, name: str) -> bool:
    """Whether a linked folder leads to one of those it lies in."""
    real = os.path.realpath(os.path.join(place, name))
    return os.path.islink(os.path.join(place, name)) and os.path.realpath(place).startswith(real)


def _seen(files: Files) -> str:
    """What lies there, for one line."""
    if not files.paths:
        return 'no file but pictures'
    return some([path.relative_to(files.root).as_posix() for path in files.paths], 5)
