"""What annotations name stays below the folders of their dataset and is a file: mmdet opens whatever path they give."""
from __future__ import annotations

import os
from functools import wraps
from types import ModuleType
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import is_below

_RUNS = ('.pkl', '.pickle', '.yaml', '.yml')  # mmengine reads them by pickle, and by YAML's loader of any object


def require_below(path: Any, dataset: Any, who: str) -> None:
    """Refuse the path of a picture that lies outside the folders a person gave: ``data_root`` and ``data_prefix``.

    A dataset without either walks a folder of its own, or looks itself (``OldImages``, ``LinesDataset``).

    Args:
        path: The path; what is none is another's to refuse.
        dataset: A dataset of mmengine's kind.
        who: What names it, for the message.

    Raises:
        UserError: It lies elsewhere.
    """
    given = [dataset.data_root, *(dataset.data_prefix or {}).values()]
    if hasattr(dataset, 'img_subdir') and hasattr(dataset, 'sub_data_root'):  # VOC's, which need not lie below either
        given.append(os.path.join(dataset.sub_data_root, dataset.img_subdir))
    folders = [each for each in given if each and isinstance(each, str)]
    if folders and isinstance(path, str) and not is_below(path, folders):
        raise UserError(f'{who} names the picture {path}, which lies outside the folders of its dataset '
                        f'({", ".join(dict.fromkeys(folders))}): a file of annotations may be anybody\'s; to allow it '
                        "name its folder in the config, as data_prefix=dict(..., others='FOLDER')")


def patch_base_dataset(module: ModuleType) -> None:
    """Let a dataset give no picture outside its folders, read no annotations that run code, and copy what is its own.

    mmengine notes what it copied for a subset by the place in memory, in one table for the whole process: where an
    object is gone and another one has its place, that one's copy would be the old object's, of whatever class.
    """
    get, load, copied = (module.BaseDataset.get_data_info, module.BaseDataset.load_data_list,
                         module.BaseDataset._copy_without_annotation)

    @wraps(load)
    def load_data_list(self: Any) -> Any:
        if str(self.ann_file).lower().endswith(_RUNS):
            raise UserError(f'ann_file {self.ann_file} would be read in a way that runs code which is in it; write the '
                            'annotations as .json')
        return load(self)

    @wraps(get)
    def get_data_info(self: Any, idx: int) -> Any:
        info = get(self, idx)
        if isinstance(info, dict) and not getattr(self, 'places_pictures', False):
            require_below(info.get('img_path'), self, str(self.ann_file or type(self).__name__))
        return info

    @wraps(copied)
    def copy_without_annotation(self: Any, memo: dict[int, Any] | None = None) -> Any:
        return copied(self, {} if memo is None else memo)

    module.BaseDataset.load_data_list, module.BaseDataset.get_data_info = load_data_list, get_data_info
    module.BaseDataset._copy_without_annotation = copy_without_annotation


def patch_local_files(module: ModuleType) -> None:
    """Let what is read from the disk be a file: a named pipe would be waited for until somebody writes to it."""

    def of_files(read: Any) -> Any:

        @wraps(read)
        def read_file(self: Any, filepath: Any, *args: Any, **kwargs: Any) -> Any:
            if not os.path.isfile(filepath) and os.path.exists(filepath):
                raise UserError(f'{filepath} is no file; take it away, or take out what names it')
            return read(self, filepath, *args, **kwargs)

        return read_file

    for name in ('get', 'get_text'):
        setattr(module.LocalBackend, name, of_files(getattr(module.LocalBackend, name)))
