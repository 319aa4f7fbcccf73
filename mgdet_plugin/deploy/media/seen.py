"""One picture or frame with what was found on it, and what takes it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
from PIL import Image

from mgdet_plugin.deploy.media.captures import Frame
from mgdet_plugin.deploy.media.find_media import Media
from mgdet_plugin.deploy.sheet import Box, Colour, draw_boxes, scale_of


class Detection(NamedTuple):
    """Corners (x1, y1, x2, y2) in pixels of the picture, place of the class, score, and number of the track, if any."""

    corners: Sequence[float]
    label: int
    score: float
    track: int | None = None


@dataclass(frozen=True)
class Seen:
    """What every sink takes.

    Attributes:
        media: Where it comes from.
        frame: Its pixels.
        detections: What was found, best first.
        classes: Names of the classes.
        palette: (red, green, blue) of each class.
    """

    media: Media
    frame: Frame
    detections: Sequence[Detection]
    classes: Sequence[str]
    palette: Sequence[Colour]

    @property
    def stem(self) -> str:
        """Path, below the folder to write to and without ending, of the files of this picture or frame."""
        if self.frame.number is None:
            return self.media.stem
        return f'{self.media.stem}/{self.frame.number:06d}'

    @cached_property
    def drawn(self) -> Image.Image:
        """The picture in RGB with boxes and texts; a small one is enlarged until these are legible."""
        picture = Image.fromarray(cv2.cvtColor(self.frame.pixels, cv2.COLOR_BGR2RGB))
        boxes = [Box(each.corners, self.palette[each.label], self._text(each)) for each in reversed(self.detections)]
        return draw_boxes(picture, boxes, max(1, scale_of(picture.size)))

    def _text(self, found: Detection) -> str:
        track = '' if found.track is None else f'#{found.track} '
        return f'{self.classes[found.label]} {track}{found.score:.2f}'


class Sink:
    """Takes what was found on one picture or frame after the other."""

    def take(self, seen: Seen) -> None:
        """Take one."""
        raise NotImplementedError

    def end_source(self) -> None:
        """A source has ended: the next frame is of another."""

    def close(self) -> None:
        """All sources have ended."""
