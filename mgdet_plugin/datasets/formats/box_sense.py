"""Whether the boxes of an annotation file are written as they are read: pixels, corners or sizes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mgdet_plugin.common.errors import UserError

RELATIVE = 1.5  # numbers up to here are shares of the picture, not pixels
_EDGE, _EDGE_SHARE = 2.0, 0.02  # pixels and share of a side that a box may reach beyond its picture
_MOST, _WRONG, _RIGHT = 0.5, 0.3, 0.95  # shares of the boxes: relative; unsound as read, sound in the other reading
_LEAST = 5  # unsound boxes, below which nothing is concluded
_WRITTEN = {True: ('x1, y1, x2, y2', '[x1, y1, x2, y2]'), False: ('x, y, width, height', '[x, y, x2 - x1, y2 - y1]')}


@dataclass
class BoxSense:
    """Counts over the boxes of a dataset.

    Attributes:
        corners: whether they are read as corners, as VOC writes them, or as corner and size, as COCO does.
        boxes: how many were counted.
        unsound: those without a size or beyond their picture, as they are read.
        otherwise: those that are sound in the other reading.
        relative: those whose numbers are all at most ``RELATIVE``.
        beyond: those that begin in their picture and end well outside.
        first_unsound, first_relative, first_beyond: the first of each, ``image NAME, [...]``.
    """

    corners: bool
    boxes: int = 0
    unsound: int = 0
    otherwise: int = 0
    relative: int = 0
    beyond: int = 0
    first_unsound: str = ''
    first_relative: str = ''
    first_beyond: str = ''

    def count(self, values: Sequence[float], size: tuple[float, float] | None, image: object) -> None:
        """Count one box by the four numbers of the file; ``size`` of its image is (w, h) in pixels."""
        x, y, third, fourth = values
        readings = (third, fourth), (x + third, y + fourth)
        (x2, y2), other = readings if self.corners else readings[::-1]
        self.boxes += 1
        inside = size is None or ends_inside(x2, y2, size)
        if not (x2 > x and y2 > y and inside):
            self.unsound += 1
            self.first_unsound = self.first_unsound or f'{image}, {list(values)}'
        self.otherwise += other[0] > x and other[1] > y and (size is None or ends_inside(*other, size))
        if max(map(abs, values)) <= RELATIVE:
            self.relative += 1
            self.first_relative = self.first_relative or f'{image}, {list(values)}'
        elif not inside and size is not None and x < size[0] and y < size[1]:
            self.beyond += 1
            self.first_beyond = self.first_beyond or f'{image}, {list(values)}'

    def refuse(self, name: str, source: object) -> None:
        """Refuse boxes that cannot be meant as they are read.

        Raises:
            UserError: most are relative, all are sound in the other reading and many are not in this one, or nearly all
                reach beyond their picture.
        """
        if self.relative > _MOST * self.boxes:
            raise UserError(f'{name}: {self.relative:,} of {self.boxes:,} boxes in {source} have no number above '
                            f'{RELATIVE} (first: {self.first_relative}), as shares of the picture have; pixels are '
                            'needed: multiply by the width and height of their images')
        if self.unsound >= max(_LEAST, _WRONG * self.boxes) and self.otherwise >= _RIGHT * self.boxes:
            read, other = _WRITTEN[self.corners], _WRITTEN[not self.corners]
            raise UserError(f'{name}: the boxes in {source} seem to be written as {other[0]}: read as {read[0]}, '
                            f'{self.unsound:,} of {self.boxes:,} have no size or reach beyond their picture (first: '
                            f'{self.first_unsound}), and {self.otherwise:,} are sound the other way; write {read[1]}')

        if self.beyond >= max(_LEAST, _RIGHT * self.boxes):
            raise UserError(f'{name}: {self.beyond:,} of {self.boxes:,} boxes in {source} reach beyond their picture '
                            f'(first: {self.first_beyond}); they, or the sizes there, are those of other pictures')

    def lines(self, name: str) -> list[str]:
        """What a person should know of single boxes."""
        said = ((self.relative, 'have relative coordinates', self.first_relative),
                (self.beyond, 'reach beyond their picture', self.first_beyond))
        return [f'{name}: {count:,} of {self.boxes:,} boxes {what} (first: {first})' for count, what, first in said
                if count]


def ends_inside(x2: float, y2: float, size: tuple[float, float]) -> bool:
    """Whether a box that ends at (x2, y2) ends in its picture of (w, h), give or take what a hand is off by."""
    return all(end <= side * (1 + _EDGE_SHARE) + _EDGE for end, side in zip((x2, y2), size))
