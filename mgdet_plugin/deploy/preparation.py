"""Pictures of any kind into a network's input, by the steps of a test pipeline: the same for every backend."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS

Picture = str | Path | np.ndarray | Image.Image
"""A picture's path, its pixels (H, W, 3) uint8 in BGR, or Pillow's picture, taken as its pixels lie."""


class Preparation:
    """Runs the steps of a test pipeline on pictures; its loader reads files, its annotations are left out.

    Args:
        steps: Configs of the pipeline's transforms.
        origin: Whose pipeline it is, for messages.

    Raises:
        UserError: The pipeline loads no image.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]], origin: str) -> None:
        kinds = [TRANSFORMS.get(step['type']) if isinstance(step['type'], str) else step['type'] for step in steps]
        loaders = [step for step, kind in zip(steps, kinds) if issubclass(kind, LoadImageFromFile)]
        if not loaders:
            raise UserError(f'{origin}: the test pipeline loads no image; begin it with LoadImageFromFile')
        self._load = TRANSFORMS.build(dict(loaders[0]))
        self._rest = Compose([dict(step) for step, kind in zip(steps, kinds)
                              if not issubclass(kind, (LoadImageFromFile, LoadAnnotations))])

    def __call__(self, picture: Picture) -> dict[str, Any]:
        """The packed sample of a picture.

        Raises:
            UserError: It is not there, cannot be read, or is no picture.
        """
        if isinstance(picture, (str, Path)):
            return self._rest(self._read(Path(picture)))
        pixels = bgr_pixels(picture)
        shape = pixels.shape[:2]
        return self._rest(dict(img=pixels, img_path=None, img_id=0, img_shape=shape, ori_shape=shape))

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise UserError(f'the picture {path} is not there')
        try:
            return self._load(dict(img_path=str(path), img_id=0))
        except DECODER_ERRORS as error:
            raise UserError(f'the picture {path} cannot be read ({error})') from None


def bgr_pixels(picture: np.ndarray | Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) uint8 in BGR of an array of these or of a Pillow picture.

    Raises:
        UserError: It is neither.
    """
    if isinstance(picture, Image.Image):
        return np.ascontiguousarray(np.asarray(picture.convert('RGB'))[..., ::-1])
    if not isinstance(picture, np.ndarray):
        raise UserError('a picture must be a path, an array (H, W, 3) of uint8 in BGR or a Pillow picture, got a '
                        f'{type(picture).__name__}')
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise UserError(f'an array must be (H, W, 3) of uint8 in BGR, got {picture.shape} of {picture.dtype}')
    return picture


def as_pictures(images: Picture | Iterable[Picture]) -> Iterator[Picture]:
    """One picture or several, one after the other."""
    return iter((images, ) if isinstance(images, (str, Path, np.ndarray, Image.Image)) else images)
