"""Where the files of a dataset must lie, and what to set where they do not."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.common.resources import command
from mgdet_plugin.compat.dataset_patches import require_below
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport

BYTES = 'MGDET_ANNOTATION_BYTES'
"""Of the environment: the largest annotation file that is read, whatever its format."""


def annotation_bytes(path: Path, most: int) -> bytes:
    """What an annotation file holds.

    Raises:
        UserError: it is no file, or larger than what is read: parsed, it takes several times its size of memory.
    """
    if not os.path.isfile(path) and os.path.exists(path):  # a pipe: opening it would wait for ever
        raise UserError(f'{path} is no file; correct the path, or take it away')
    given = os.environ.get(BYTES, str(most))
    require(given.isdecimal(), f'{BYTES} in the environment must be a number of bytes', given)
    size, limit = path.stat().st_size, int(given)
    if size > limit:
        raise UserError(f'{path} has {size:,} bytes, an annotation file may have {limit:,}; point to the right file, '
                        f'or raise the limit by {BYTES} in the environment')
    return path.read_bytes()


def is_remote(leaf: Mapping[str, Any]) -> bool:
    """Whether the files lie behind a storage backend other than the local disk."""
    backend = (leaf.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or '://' in f'{leaf.get("data_root") or ""} {leaf.get("ann_file") or ""}'


def require_path(name: str, key: str, path: str | None, is_file: bool = False,
             hint: str = 'correct data_root, ann_file and data_prefix of the dataset') -> None:
    """Raise unless a file or folder is there, saying how to get on without it."""
    path = str(path)  # None, where a config leaves it out
    if os.path.isfile(path) if is_file else os.path.isdir(path):
        return
    what = 'file' if is_file else 'folder'
    if Path(path).parts[:2] == ('data', 'coco'):
        hint = ('lay COCO out as data/coco/{annotations,train2017,val2017} or set the dataset to your own. To try it '
                f'on embedded data: {command("train", "configs/mgdet_model5_stage1.py", "--demo")}')
    raise UserError(f'{name}: {key} {path} is not there (a {what} is needed, seen from {os.getcwd()}); {hint}')


def require_voc_folder(name: str, key: str, dataset: Any) -> None:
    """Raise unless a folder of a VOC set is there, in terms of what XMLDataset puts its path together from."""
    hint = f"XMLDataset joins data_root, data_prefix['sub_data_root'] and {key}; set {key} to your folder's name"
    if 'sub_data_root' not in dataset.data_prefix:
        hint = (f'data_prefix has no sub_data_root, and XMLDataset joins {key} to that alone, not to data_root; set '
                f"data_prefix=dict(sub_data_root='') to begin at data_root, and {key} to your folder's name")
    require_path(name, key, os.path.join(dataset.sub_data_root, getattr(dataset, key)), hint=hint)


def require_images(report: DatasetReport, folder: Path, dataset: Any) -> None:
    """Raise if images that the annotations name are not in their folder, or lead out of the dataset's; each folder is
    listed once.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for record in report.records:
        require_below(os.path.join(folder, record.file_name), dataset, str(report.source))
        head, tail = os.path.split(os.path.join(folder, record.file_name))
        if head not in listed:
            listed[head] = set(os.listdir(head)) if os.path.isdir(head) else set()
        if tail not in listed[head]:
            missing.append(record.file_name)
    if missing:
        stem = missing[0].rpartition('.')[0]
        other = next((each for each in sorted(os.listdir(folder)) if each.rpartition('.')[0] == stem), None)
        raise UserError(f'{report.name}: {len(missing):,} of {report.images:,} images named in {report.source} are not '
                        f'in {folder} (first: {missing[0]}' + (f'; {other} is there' if other else '') +
                        '); correct the folder or fetch them')
