"""What is examined: the pictures of a data set and their boxes as plain records, whatever format they come from.

Everything after :mod:`mgdet_plugin.prepare.faults.data_source` goes by these alone.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

TRAIN = 'train'
Corners = tuple[float, float, float, float]


class PictureBox(NamedTuple):
    """A box as it is annotated: corners (x1, y1, x2, y2) in pixels of the picture, place of its class, whether it is
    a region to be ignored (COCO's ``iscrowd``, VOC's ``difficult``), and its id in the COCO file of a config."""

    corners: Corners
    label: int
    ignored: bool = False
    id: int | None = None


@dataclass(frozen=True)
class PictureRecord:
    """One picture of one split.

    Attributes:
        path: Where it lies.
        size: (w, h) in pixels as its annotations say; None where they do not.
        boxes: Its boxes, those that no detector can use included.
        split: ``train``, ``val``, ``test`` or another name.
    """

    path: str
    size: tuple[float, float] | None
    boxes: tuple[PictureBox, ...]
    split: str = TRAIN

    @cached_property
    def sound(self) -> tuple[PictureBox, ...]:
        """The boxes that are trained on: not to be ignored, and with a size, in the picture."""
        return tuple(box for box in self.boxes
                     if not box.ignored and degenerate_reason(box.corners, self.size) is None)


@dataclass(frozen=True)
class PictureSet:
    """Pictures of all splits, and their classes.

    Attributes:
        classes: Names, in the order of the labels.
        records: The pictures.
        refused: Split -> why training on it would be refused, one line.
        said: What training would say of its annotations and is not found box by box, a line each.
        form: The format they were read as, in words; empty for those of a config.
        missing: Names of pictures that are annotated and not there.
        notes: How the annotations were read, a line each.
    """

    classes: tuple[str, ...]
    records: tuple[PictureRecord, ...]
    refused: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    form: str = ''
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order."""
        return tuple(dict.fromkeys(each.split for each in self.records))

    def of(self, split: str) -> tuple[PictureRecord, ...]:
        """The pictures of one split."""
        return tuple(each for each in self.records if each.split == split)

    def boxes(self) -> Iterator[tuple[PictureRecord, PictureBox]]:
        """Every box that is not to be ignored, with its picture."""
        return ((record, box) for record in self.records for box in record.boxes if not box.ignored)
