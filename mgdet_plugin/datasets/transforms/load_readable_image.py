"""A loader for training that leaves out a few pictures that cannot be read."""
from __future__ import annotations

import logging
from typing import Any

import cv2
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log
from PIL import Image

from mgdet_plugin.common.errors import UserError, is_number

# OpenCV, Pillow (SyntaxError for a broken PNG), tifffile and mmcv, which asserts that there is an image
DECODER_ERRORS = (cv2.error, OSError, ValueError, TypeError, AssertionError, AttributeError, SyntaxError, MemoryError,
                  Image.DecompressionBombError)


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """``LoadImageFromFile`` for a training pipeline that gives None where a picture cannot be read.

    The dataset then takes another image in its place. The checks before training name these pictures and refuse more
    of them than ``skip``. Pictures that are measured on must all be readable, so no validation takes this step.

    Args:
        skip: the largest share of a dataset's pictures that may be left out. Default 0.01.
        **kwargs: those of ``LoadImageFromFile``.

    Raises:
        UserError: (a ValueError) for a ``skip`` outside of 0..1.
    """

    def __init__(self, skip: float = 0.01, **kwargs: Any) -> None:
        if not is_number(skip) or not 0 <= skip <= 1:
            raise UserError(f'LoadReadableImage: skip must be a share from 0 to 1, got {skip!r}')
        super().__init__(**kwargs)
        self.skip = skip

    def load(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The sample with its image, as ``LoadImageFromFile`` loads it, errors included."""
        return super().transform(results)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The sample with its image, None where it cannot be read."""
        try:
            return self.load(results)
        except DECODER_ERRORS as error:
            # for the log's file: a person has been told before training, of all of them at once
            print_log(f'{results["img_path"]} cannot be read and is skipped ({error})', 'current', logging.INFO)
            return None
