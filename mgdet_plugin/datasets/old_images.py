"""Pictures like those that weights were trained on, without labels, and the pipeline that augments them."""
from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets.transforms import Albu, CopyPaste, FilterAnnotations, MixUp, RandomCrop
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.dataset import BaseDataset, Compose

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import PICTURE_SUFFIXES, content_hash, files_below
from mgdet_plugin.datasets.formats.annotation_check import iter_dataset_cfgs
from mgdet_plugin.datasets.formats.picture_files import declared_sizes_unbounded, picture_size
from mgdet_plugin.datasets.formats.pictures import decoded
from mgdet_plugin.datasets.staged.staged_mix import StagedMix
from mgdet_plugin.datasets.transforms.load_readable_image import LoadReadableImage

_MOST = 0.1  # share of the old pictures that are the new set's own, above which a person has mistaken the folder
Source = str | Mapping[str, Any]
"""Of old pictures: a folder, or the config of a dataset."""
_WANTED = 'give a folder of pictures like those the weights were trained on'


@DATASETS.register_module()
class OldImages(BaseDataset):
    """Pictures without boxes: ``instances`` is empty, whatever labels lie beside them, so no pipeline loads any.

    Each sample has ``img_path``, ``file_name`` (below the folder, or below what all paths have in common, with '/'),
    ``img_id`` (its place in the order of these names, from 0), and ``height`` and ``width`` in pixels by its header (0
    where that cannot be read). A pipeline that begins with ``LoadReadableImage`` has what cannot be read left out here,
    so that each index of the dataset is a picture.

    Args:
        images: A folder, searched to any depth, hidden files and folders left out and links followed; or paths; or the
            config of a dataset, of which nothing but the paths is used.
        **kwargs: Those of mmengine's BaseDataset, such as ``pipeline`` and ``metainfo``.

    Raises:
        UserError: (a ValueError) The folder is missing, a file, or holds no picture; or the dataset names none.
    """

    def __init__(self, images: Source | Sequence[str], **kwargs: Any) -> None:
        self.images = images
        self.folder = ''
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """The pictures, in the same order on every machine."""
        if isinstance(self.images, str):
            source = self.folder = self.images
            paths = list(pictures_below(self.folder))
        else:
            given = isinstance(self.images, Mapping)
            source, paths = ('the dataset', image_paths(self.images)) if given else ('the list', list(self.images))
            folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
            self.folder = os.path.commonpath(folders) if folders else ''
        named = sorted((Path(os.path.relpath(path, self.folder)).as_posix(), path) for path in paths)
        loader = next((step for step in self.pipeline.transforms if isinstance(step, LoadReadableImage)), None)
        with declared_sizes_unbounded():
            named = [(name, path) for name, path in named if not (loader and isinstance(decoded(path, loader), str))]
            sizes = [picture_size(path) for _, path in named]
        if not named:
            raise UserError(f'{source} holds no picture ({", ".join(PICTURE_SUFFIXES)}); {_WANTED}')
        return [dict(img_path=path, file_name=name, img_id=index, width=width, height=height, instances=[])
                for index, ((name, path), (width, height)) in enumerate(zip(named, sizes))]

    @property
    def paths(self) -> list[str]:
        """Path of each picture."""
        return [self.get_data_info(index)['img_path'] for index in range(len(self))]

    @property
    def names(self) -> list[str]:
        """Name of each picture, the same wherever its folder lies."""
        return [self.get_data_info(index)['file_name'] for index in range(len(self))]

    def leave_out(self, new: Iterable[str]) -> int:
        """Leave out the pictures that are among others, by content: what is learnt anew is not held as it was.

        Args:
            new: Paths of the pictures of the new set.

        Returns:
            How many were left out.

        Raises:
            UserError: They are more than a tenth: the folder is the new set's.
        """
        same = same_pictures(self.paths, new)
        if len(same) > _MOST * len(self):
            raise UserError(f'{len(same):,} of {len(self):,} pictures are those of the training set itself (first: '
                            f'{self.names[same[0]]}), and old ones are needed; {_WANTED}')
        if same:
            self.get_subset_([index for index in range(len(self)) if index not in set(same)])
        return len(same)

    def seen_by(self, pipeline: Sequence[Mapping[str, Any]]) -> OldImages:
        """The same pictures through another pipeline, one of which each index must come."""
        twin = copy.copy(self)
        twin.pipeline, twin.test_mode = Compose(old_pipeline(pipeline)), True
        return twin


def old_pipeline(pipeline: Iterable[Any]) -> list[Any]:
    """A training or validation pipeline's config for pictures without boxes: the steps that would drop them changed.

    Left out, nested ones too: FilterAnnotations; a StagedMix of MixUp or CopyPaste, which mix no picture without boxes
    (Mosaic does, and mixes old ones with old ones). RandomCrop takes crops without boxes, Albu leaves in what has none.
    Of mmdet's other steps those that train detectors of boxes take such pictures as they are (MinIoURandomCrop then
    crops anywhere).
    """
    return [changed for step in pipeline if (changed := _for_old(step)) is not None]


def _for_old(step: Any) -> Any:
    if isinstance(step, (list, tuple)):  # an alternative of RandomChoice
        return old_pipeline(step)
    kind = _kind(step)
    if issubclass(kind, FilterAnnotations):
        return None
    if issubclass(kind, StagedMix) and issubclass(_kind(step['transforms'][0]), (MixUp, CopyPaste)):
        return None
    if issubclass(kind, RandomCrop):
        return {**step, 'allow_negative_crop': True}
    if issubclass(kind, Albu):  # whose transforms are another library's
        return {**step, 'skip_img_without_anno': False}
    inner = step.get('transforms') if isinstance(step, Mapping) else None
    if inner is None:
        return step
    return {**step, 'transforms': old_pipeline([inner] if isinstance(inner, Mapping) else inner)}


def _kind(step: Any) -> type:
    """Class of a step's config; that of none if it is no config or not known."""
    kind = step.get('type') if isinstance(step, Mapping) else None
    found = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return found if isinstance(found, type) else type(None)


def image_paths(dataset: Any) -> list[str]:
    """Paths of the pictures of a dataset's config, wrappers included, each once, in their order."""
    built = (DATASETS.build({**leaf, 'pipeline': [], 'serialize_data': False}) for leaf in iter_dataset_cfgs(dataset))
    return list(dict.fromkeys(leaf.get_data_info(index)['img_path'] for leaf in built for index in range(len(leaf))))


def pipeline_of(dataset: Any) -> list[Any]:
    """The pipeline of a dataset's config, of the first one inside wrappers."""
    found: list[Any] = next(iter_dataset_cfgs(dataset))['pipeline']
    return found


def same_pictures(pictures: Sequence[str], others: Iterable[str]) -> list[int]:
    """Indices of the pictures whose files are among others, by place or content; only files of one size are read."""
    listed = list(others)
    places = set(map(os.path.realpath, listed))
    copied = {index: _bytes_of(path) for index, path in enumerate(pictures) if os.path.realpath(path) not in places}
    sizes = set(copied.values()) - {None}
    known = {content_hash(path) for path in listed if _bytes_of(path) in sizes}
    return [index for index, path in enumerate(pictures)
            if index not in copied or (copied[index] is not None and known and content_hash(path) in known)]


def _bytes_of(path: str) -> int | None:
    """Size of a file; None for what is none, such as a pipe or an address."""
    return os.path.getsize(path) if os.path.isfile(path) else None


def pictures_below(folder: str) -> Iterator[str]:
    """Files of a folder at any depth that are pictures by their suffix, each linked folder gone into once."""
    if not os.path.isdir(folder):
        what = 'is a file' if os.path.exists(folder) else f'is not there (seen from {os.getcwd()})'
        raise UserError(f'{folder} {what}; {_WANTED}')
    yield from files_below(folder, PICTURE_SUFFIXES)
