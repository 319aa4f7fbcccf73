"""How near an exported file comes to the weights it was made of: maps, boxes, mean AP and time."""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Picture
from mgdet_plugin.deploy.export.labelled import mean_ap
from mgdet_plugin.deploy.predictor import Predictor
from mgdet_plugin.models.maths.overlaps import overlap

SAME_OBJECT = 0.5  # overlap from which two boxes of a class are one
MAP_BOUND = 1e-3  # largest difference of a raw map in single precision, of one whose values stay below 100
MAP_SHARE = 1e-5  # the same of a map of larger values, as a share of the largest: some 80 units of single precision
MAPS_COMPARED = 4  # pictures
Maps = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Parity:
    """An exported file held against the weights in torch, single precision, on annotated pictures.

    Attributes:
        pictures: How many.
        maps: Largest absolute difference of a raw map, of that which comes nearest to its bound.
        map_size: Its largest absolute value.
        boxes: Detections of the weights; ``matched`` of them were found again, ``extra`` were found in addition.
        matched: One to one, of the same class and an overlap of at least 0.5.
        extra: Detections of the file that match none.
        corner: Largest difference of a matched corner, in pixels.
        score: Largest difference of a matched score.
        ap: Mean AP of weights and file.
        milliseconds: Median of a picture, from its file to its boxes, of weights and file.
        bytes: Size of both.
    """

    pictures: int
    maps: float
    map_size: float
    boxes: int
    matched: int
    extra: int
    corner: float
    score: float
    ap: tuple[float, float]
    milliseconds: tuple[float, float]
    bytes: tuple[int, int]

    @property
    def drop(self) -> float:
        """Mean AP lost."""
        return self.ap[0] - self.ap[1]

    def check(self, precision: str, max_drop: float) -> None:
        """Hold it against its bounds.

        Raises:
            UserError: The mean AP falls by more than ``max_drop``, or maps in single precision differ.
        """
        if self.drop > max_drop:
            raise UserError(f'{precision} costs {self.drop:.4f} of AP ({self.ap[0]:.4f} -> {self.ap[1]:.4f} on '
                            f'{self.pictures} pictures), more than --max-drop {max_drop}; nothing was written; take '
                            'another --precision or a larger bound')
        if precision == 'fp32' and not _of_bound(self.maps, self.map_size) <= 1:
            raise UserError(f'the raw maps of the exported file differ by {self.maps:.2g} from those of torch, the '
                            f'bound is {map_bound(self.map_size):.2g} for values up to {self.map_size:.2g}; nothing '
                            'was written; please report it with the versions of torch and of the library')

    def table(self, max_drop: float) -> str:
        """For a person."""
        rows = [('', 'weights in torch', 'exported', 'difference'),
                ('AP', f'{self.ap[0]:.4f}', f'{self.ap[1]:.4f}', f'{-self.drop:+.4f}'),
                ('boxes', str(self.boxes), str(self.matched + self.extra),
                 f'{self.matched} matched, {self.boxes - self.matched} missing, {self.extra} extra'),
                ('ms a picture', *(f'{value:.1f}' for value in self.milliseconds),
                 f'{self.milliseconds[0] / self.milliseconds[1]:.2f} times as fast'),
                ('MB', *(f'{value / 1e6:.1f}' for value in self.bytes), ''),
                ('raw maps', '', '', f'{self.maps:.2g}, values up to {self.map_size:.3g}'),
                ('corners, pixels', '', '', f'{self.corner:.2g}'),
                ('scores', '', '', f'{self.score:.2g}')]
        widths = [max(map(len, column)) for column in zip(*rows)]
        weak = ''
        if self.ap[0] <= max_drop:
            weak = f'; the weights have less AP there than --max-drop {max_drop} allows to lose: it judges nothing'
        lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        return '\n'.join([*lines, f'on {self.pictures} pictures, one at a time{weak}'])


def compare(reference: Predictor, exported: Predictor, pictures: Sequence[Picture],
            maps: tuple[Maps, Maps], sizes: tuple[int, int]) -> Parity:
    """Run both on the same pictures in turns.

    Args:
        reference: The weights in torch.
        exported: The file.
        pictures: Annotated.
        maps: What gives the raw maps of either.
        sizes: Bytes of either.
    """
    found: tuple[list[DetDataSample], list[DetDataSample]] = ([], [])
    times: tuple[list[float], list[float]] = ([], [])
    for each in (reference, exported):
        each(pictures[0].path)  # the first call sets up
    for picture in pictures:
        for each, samples, seconds in zip((reference, exported), found, times):
            start = time.perf_counter()
            samples += each(picture.path)
            seconds.append(time.perf_counter() - start)
    pairs = [matches(one.pred_instances, other.pred_instances) for one, other in zip(*found)]
    boxes, others = (sum(len(sample.pred_instances) for sample in samples) for samples in found)
    matched = sum(len(pair[0]) for pair in pairs)
    ap = [mean_ap(pictures, reference.classes, samples) for samples in found]
    ours, theirs = (statistics.median(seconds) * 1e3 for seconds in times)
    return Parity(len(pictures), *map_difference(reference, pictures[:MAPS_COMPARED], maps), boxes, matched,
                  others - matched, max((float(pair[0].max()) for pair in pairs if len(pair[0])), default=0.0),
                  max((float(pair[1].max()) for pair in pairs if len(pair[1])), default=0.0),
                  (ap[0], ap[1]), (ours, theirs), sizes)


def matches(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Detections of two models that are one object.

    Args:
        first: ``bboxes`` (M, 4), ``scores`` and ``labels`` (M,), by falling score.
        second: The same of the other.

    Returns:
        Of each pair the largest difference of a corner in pixels, and that of the score.
    """
    measure = overlap(first.bboxes[:, None], second.bboxes[None])
    near = (first.bboxes[:, None] - second.bboxes[None]).abs().amax(-1) < 1  # clipped to nothing they do not overlap
    measure = torch.where(near, torch.ones_like(measure), measure)
    measure = torch.where(first.labels[:, None] == second.labels[None], measure, torch.zeros_like(measure))
    pairs: list[tuple[int, int]] = []
    for index in range(len(measure)):
        if measure.shape[1] and float(measure[index].max()) >= SAME_OBJECT:
            other = int(measure[index].argmax())
            pairs.append((index, other))
            measure[:, other] = 0
    ours, theirs = (torch.tensor(side, dtype=torch.long) for side in (zip(*pairs) if pairs else ((), ())))
    corners = (first.bboxes[ours] - second.bboxes[theirs]).abs().amax(1) if pairs else torch.zeros(0)
    return corners, (first.scores[ours] - second.scores[theirs]).abs()


def map_difference(reference: Predictor, pictures: Sequence[Picture], maps: tuple[Maps, Maps]) -> tuple[float, float]:
    """How far raw maps differ on pictures, as the reference prepares them.

    Returns:
        Of the map that comes nearest to its bound the largest absolute difference and value.
    """
    found = []
    for picture in pictures:
        images = reference.prepared(picture.path)
        for one, other in zip(*([np.asarray(each) for each in side(images)] for side in maps), strict=True):
            found.append((float(np.abs(one - other).max()), float(np.abs(one).max())))
    return max(found, key=lambda each: _of_bound(*each))


def map_bound(size: float) -> float:
    """The most that a raw map of values up to ``size`` may differ in single precision.

    What differs is the order of sums, whose error grows with the values: full-size weights drawn at random give maps up
    to 7,000, and there torch itself is 0.01 from the network in double precision.
    """
    return max(MAP_BOUND, MAP_SHARE * size)


def _of_bound(difference: float, size: float) -> float:
    """A difference as a multiple of its bound; infinite where either is no number."""
    return difference / map_bound(size) if math.isfinite(difference) and math.isfinite(size) else math.inf
