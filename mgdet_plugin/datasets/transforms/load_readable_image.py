"""A loader for training that leaves out a few pictures that cannot be read."""
from __future__ import annotations

import logging
from math import ceil
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from mgdet_plugin.common.errors import UserError, is_number
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS, file_fault


@TRANSFORMS.register_module()
class LoadReadableImage(LoadImageFromFile):
    """``LoadImageFromFile`` for a training pipeline that gives None where a picture cannot be read.

    The dataset then takes another image in its place. The checks before training name these pictures and refuse more
    of them than ``skip``; where more become unreadable amid a run (files that are removed), it ends as soon as one
    process that loads images has met so many. Pictures that are measured on must all be readable, so no validation
    takes this step.

    Args:
        skip: the largest share of a dataset's pictures that may be left out. Default 0.01.
        **kwargs: those of ``LoadImageFromFile``.

    Raises:
        UserError: (a ValueError) for a ``skip`` outside of 0..1.
    """

    pictures: int | None = None
    """How many there are in the dataset, where it says so; without it nothing is counted."""

    def __init__(self, skip: float = 0.01, **kwargs: Any) -> None:
        if not is_number(skip) or not 0 <= skip <= 1:
            raise UserError(f'LoadReadableImage: skip must be a share from 0 to 1, got {skip!r}')
        super().__init__(**kwargs)
        self.skip = skip
        self._lost: set[str] = set()

    def load(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The sample with its image, as ``LoadImageFromFile`` loads it, errors included."""
        return super().transform(results)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The sample with its image, None where it cannot be read.

        Raises:
            UserError: more pictures than ``skip`` allows cannot be read.
        """
        path = results['img_path']
        fault: object = file_fault(path)
        if not fault:
            try:
                return self.load(results)
            except DECODER_ERRORS as error:
                fault = error
        if path not in self._lost:
            # for the log's file: a person has been told before training, of all of them at once
            print_log(f'{path} cannot be read and is skipped ({fault})', 'current', logging.INFO)
        self._lost.add(path)
        if self.pictures is not None and len(self._lost) > ceil(self.skip * self.pictures):
            raise UserError(f'{len(self._lost):,} of {self.pictures:,} pictures cannot be read any more (the last: '
                            f'{path}, {fault}), and LoadReadableImage leaves out skip={self.skip} of them at most; see '
                            'to the files, then go on with --resume')
        return None
