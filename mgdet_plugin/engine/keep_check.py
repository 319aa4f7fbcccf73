"""What is told of the old pictures of a config's ``keep`` before a run is built."""
from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Inspector, LoadReadableImage, OldImages, StagedDataset
from mgdet_plugin.datasets.formats.dataset_report import ImageRecord
from mgdet_plugin.datasets.old_images import Source, same_pictures
from mgdet_plugin.keep.memory import split_held_out

IMAGES, HELD_OUT = 'keep.images', 'keep.held_out'


def check_keep(images: Source, held_out: float | Source, images_used: int | None,
               pipeline: Sequence[Mapping[str, Any]], new: Collection[str],
               inspector: Inspector | None = None) -> Iterator[str]:
    """Check the old pictures; lines that a person should know of them, of the default scope.

    Args:
        images: A folder, or the config of a dataset, to train on.
        held_out: The share of them that is held out, 0 for none; or a folder or dataset of others.
        images_used: How many are trained on; None for all.
        pipeline: That of the training set.
        new: Paths of the training set's pictures.
        inspector: Decodes the pictures; None leaves them alone, as all processes of a launch but one should.

    Raises:
        UserError: There are none or too few, they cannot be read or augmented, or they are not old: the training set's
            own, or the same to train on and to measure on.
    """
    old = yield from _checked(IMAGES, images, pipeline, new, inspector)
    if isinstance(held_out, (str, Mapping)):
        others = yield from _checked(HELD_OUT, held_out, pipeline, new, inspector)
        same = same_pictures(others.paths, old.paths)
        if same:
            raise UserError(f'{HELD_OUT}: {len(same):,} of {len(others):,} pictures are in {IMAGES}, too (first: '
                            f'{others.names[same[0]]}), and what is kept is measured on others than are trained on; '
                            'take them out of one of the two, or give a share such as held_out=0.2')
        trained = len(old)
    else:
        trained = len(split_held_out(old.names, held_out)[0])
    if images_used is not None and images_used > trained:
        yield f'keep.images_used is {images_used:,} and {trained:,} pictures are there to train on: all are used'
    StagedDataset(old.seen_by(pipeline))[0]  # a step that cannot do without boxes is named


def _checked(name: str, images: Source, pipeline: Sequence[Mapping[str, Any]], new: Collection[str],
             inspector: Inspector | None) -> Generator[str, None, OldImages]:
    """The pictures of one source, those left out that are the training set's."""
    try:
        found = OldImages(images, serialize_data=False)
        left_out = found.leave_out(new)
    except UserError as error:
        raise UserError(f'{name}: {error}') from error
    if left_out:
        yield (f"{name}: {left_out:,} of {len(found) + left_out:,} pictures are the training set's own and are left "
               'out')
    loader = next((step for step in map(TRANSFORMS.build, pipeline) if isinstance(step, LoadImageFromFile)), None)
    if inspector is None or loader is None:
        return found
    records = [ImageRecord(index, image, None) for index, image in enumerate(found.names)]
    skip = loader.skip if isinstance(loader, LoadReadableImage) else 0.0
    for line in inspector.inspect(name, records, Path(found.folder), loader, skip, 'take them out'):
        yield f'{name}: {line}'
    return found
