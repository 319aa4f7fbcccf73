"""Truth and detections of pictures, and which detection finds which object, as COCO's evaluation decides it.

Shapes: B pictures, G objects and D detections of a picture, N detections of all pictures, T overlaps asked for,
C classes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_DETECTIONS = 100  # of a class on a picture that count, those of the highest scores
WHOLE = (0.0, 1e10)  # pixels²: objects of every size
_AT_ONCE = 256  # pictures that are matched side by side


@dataclass(frozen=True)
class ImageResult:
    """A picture's truth and what was found on it. Boxes are [x, y, width, height] in pixels of the original picture.

    Attributes:
        image: Its id.
        path: Its file.
        truth: Boxes of its objects (G, 4).
        truth_labels: Their classes (G,).
        crowd: Whether each is a region that is ignored, COCO's ``iscrowd`` (G,).
        areas: Their areas in pixels², which need not be those of the boxes (G,).
        boxes: What was found, best score first (D, 4).
        scores: (D,).
        labels: (D,).
    """
    image: int | str
    path: str
    truth: np.ndarray
    truth_labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @cached_property
    def overlaps(self) -> np.ndarray:
        """IoU of each detection with each object (D, G); with a crowd, the share of the detection inside it."""
        low = np.maximum(self.boxes[:, None, :2], self.truth[None, :, :2])
        high = np.minimum((self.boxes[:, :2] + self.boxes[:, 2:])[:, None],
                          (self.truth[:, :2] + self.truth[:, 2:])[None])
        shared = np.prod(np.maximum(high - low, 0), axis=2)
        own = np.prod(self.boxes[:, 2:], axis=1)[:, None]
        union = np.where(self.crowd[None], own, own + np.prod(self.truth[:, 2:], axis=1)[None] - shared)
        return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)

    @cached_property
    def of_class(self) -> np.ndarray:
        """The overlaps with objects of a detection's own class, -1 of another (D, G)."""
        return np.where(self.truth_labels == self.labels[:, None], self.overlaps, -1.0)

    @cached_property
    def counted(self) -> np.ndarray:
        """Places of the detections that count: of each class those of the best scores."""
        order = np.argsort(self.labels, kind='stable')
        of_class = self.labels[order]
        rank = np.arange(len(order)) - np.searchsorted(of_class, of_class)
        return np.sort(order[rank < MAX_DETECTIONS])


def sorted_result(image: int | str, path: str, truth: Sequence[Sequence[float]], truth_labels: Sequence[int],
                  crowd: Sequence[bool], areas: Sequence[float], boxes: Sequence[Sequence[float]] | np.ndarray,
                  scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray) -> ImageResult:
    """A picture's result from lists, its detections brought in order; see :class:`ImageResult`."""
    scores = np.asarray(scores, float)
    order = np.argsort(-scores, kind='stable')
    return ImageResult(
        image, path, np.asarray(truth, float).reshape(-1, 4), np.asarray(truth_labels, int), np.asarray(crowd, bool),
        np.asarray(areas, float), np.asarray(boxes, float).reshape(-1, 4)[order], scores[order],
        np.asarray(labels, int)[order])


@dataclass(frozen=True)
class Matched:
    """All detections that count, and what each finds.

    Attributes:
        thresholds: The overlaps (IoU) asked for (T,).
        image: Place of the picture of each detection (N,).
        place: Place of the detection among those of its picture (N,).
        scores: (N,).
        labels: (N,).
        target: Place of the object among those of the picture, -1 for none (T, N).
        hit: Whether that is an object that counts (T, N).
        skipped: Whether the detection is neither right nor wrong: on a crowd, or out of the range of areas (T, N).
        positives: How many objects of each class count (C,).
    """
    thresholds: np.ndarray
    image: np.ndarray
    place: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    target: np.ndarray
    hit: np.ndarray
    skipped: np.ndarray
    positives: np.ndarray


def match_all(results: Sequence[ImageResult], classes: int, thresholds: Sequence[float] | np.ndarray,
              area: tuple[float, float] = WHOLE) -> Matched:
    """Match the detections of each picture with its objects of their class.

    Args:
        results: The pictures.
        classes: C.
        thresholds: T overlaps.
        area: Objects out of this range (pixels²) are ignored, and so is what is found out of it without an object.
    """
    wanted = np.asarray(thresholds, float)
    ignored = [each.crowd | _outside(each.areas, area) for each in results]
    targets = [np.zeros((len(wanted), 0), int)]
    for start in range(0, len(results), _AT_ONCE):
        targets += _match_some(results[start:start + _AT_ONCE], ignored[start:start + _AT_ONCE], wanted)
    target = np.concatenate(targets, axis=1)
    image = np.repeat(np.arange(len(results)), [len(each.counted) for each in results])
    place, scores, labels, outside = (np.concatenate([np.zeros(0, kind), *each]) for kind, each in (
        (int, [each.counted for each in results]), (float, [each.scores[each.counted] for each in results]),
        (int, [each.labels[each.counted] for each in results]),
        (bool, [_outside(np.prod(each.boxes[each.counted, 2:], axis=1), area) for each in results])))
    first = np.cumsum([0, *map(len, ignored)])[image]
    on_ignored = np.concatenate([*ignored, np.zeros(1, bool)])[np.where(target >= 0, first + target, -1)]
    skipped = np.where(target >= 0, on_ignored, outside)
    objects = np.concatenate([np.zeros(0, int), *(each.truth_labels[~left] for each, left in zip(results, ignored))])
    return Matched(wanted, image, place, scores, labels, target, (target >= 0) & ~skipped, skipped,
                   np.bincount(objects, minlength=classes))


def _outside(areas: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    return (areas < area[0]) | (areas > area[1])


def _match_some(results: Sequence[ImageResult], ignored: Sequence[np.ndarray],
                thresholds: np.ndarray) -> list[np.ndarray]:
    """The targets (T, D) of the detections that count of a few pictures, all at once."""
    own = [each.of_class[each.counted] for each in results]
    near = [np.flatnonzero(each.max(axis=1, initial=-1.0) >= min(thresholds)) for each in own]
    shape = len(results), max(map(len, near)), max(map(len, ignored))
    overlaps, left, crowd = np.full(shape, -1.0), *np.zeros((2, shape[0], shape[2]), bool)
    for index, each in enumerate(results):
        count = len(each.truth)
        overlaps[index, :len(near[index]), :count] = own[index][near[index]]
        left[index, :count], crowd[index, :count] = ignored[index], each.crowd
    found = match(overlaps, left, crowd, thresholds)
    targets = [np.full((len(thresholds), len(each)), -1) for each in own]
    for target, places, each in zip(targets, near, found):
        target[:, places] = each[:, :len(places)]
    return targets


def match(overlaps: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which object each detection of B pictures finds, for each threshold.

    In the order of their scores detections take the object they overlap most that is not taken; one that counts before
    one that is ignored. A crowd is never taken (COCO's ``evaluateImg``).

    Args:
        overlaps: (B, D, G), best score first, -1 where a detection cannot find an object, as one of another class.
        ignored: (B, G).
        crowd: (B, G).
        thresholds: (T,).

    Returns:
        Places of the objects, -1 for none (B, T, D).
    """
    pictures, count, objects = overlaps.shape
    target = np.full((pictures, len(thresholds), count), -1)
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]
    free = np.ones((pictures, len(thresholds), objects), bool)
    kinds = [~ignored, ignored] if ignored.any() else [~ignored]
    for place in range(count if objects else 0):
        reach = overlaps[:, None, place]
        fits = free & (reach >= limits)
        for kind in kinds:
            possible = np.where(fits & kind[:, None], reach, -1.0)
            best = objects - 1 - possible[..., ::-1].argmax(axis=-1)  # of equal ones the last
            chosen = (possible.max(axis=-1) >= 0) & (target[..., place] < 0)
            picture, level = np.nonzero(chosen)
            target[picture, level, place] = best[chosen]
            free[picture, level, best[chosen]] = crowd[picture, best[chosen]]
    return target
