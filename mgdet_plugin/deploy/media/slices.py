"""Small objects on large pictures: found in slices, as large as the network's input; larger ones on the whole picture.

Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection", 2022, section 3.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from mgdet_plugin.deploy.predictor import Predictor
from mgdet_plugin.models.maths.overlaps import box_area, centre_distance_penalty, overlap
from mgdet_plugin.models.maths.suppression import NMSOptions

OVERLAP = 0.25  # share of a slice that its neighbour has, too: an object up to that size is whole in one of them
_EDGE = 2.0  # pixels from a slice's border within which a box is taken as cut by it
_COVERED = 0.5  # share of a cut box on another box from which both are the same object
Window = tuple[int, int, int, int]
"""Left, top, right and bottom of a slice in pixels of the picture."""


def windows(width: int, height: int, side: tuple[int, int]) -> list[Window]:
    """Slices that cover a picture, evenly spread, all of one size and within it.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.
        side: (width, height) of a slice; where the picture is smaller, the slice is.
    """
    return [(left, top, min(left + side[0], width), min(top + side[1], height))
            for top in _starts(height, side[1]) for left in _starts(width, side[0])]


def _starts(length: int, side: int) -> list[int]:
    count = 1 if length <= side else 1 + int(np.ceil((length - side) / (side * (1 - OVERLAP))))
    return [round(each) for each in np.linspace(0, max(0, length - side), count)]


def detect_in_slices(predictor: Predictor, picture: np.ndarray, side: tuple[int, int], batch: int) -> DetDataSample:
    """What a predictor finds on the slices of a picture and on the whole of it, each object once.

    On the whole picture only what fits into no slice is looked for. A box that a slice's border cuts counts where no
    better box covers it.

    Args:
        predictor: Finds objects.
        picture: (H, W, 3) uint8 in BGR.
        side: (width, height) of a slice in pixels.
        batch: Slices that go through the network at once.

    Returns:
        The sample of the whole picture with the detections of all.
    """
    height, width = picture.shape[:2]
    places = windows(width, height, side)

    def parts() -> Iterator[np.ndarray]:
        yield picture
        for left, top, right, bottom in places if len(places) > 1 else ():
            yield np.ascontiguousarray(picture[top:bottom, left:right])

    whole, *sliced = predictor(parts(), batch)
    instances = whole.pred_instances
    found = [instances[~_fits(instances.bboxes, places)] if sliced else instances]
    cut = [torch.zeros(len(found[0]), dtype=torch.bool)]
    for place, sample in zip(places, sliced):
        instances = sample.pred_instances
        instances.bboxes = instances.bboxes + instances.bboxes.new_tensor(place[:2] * 2)
        found.append(instances)
        cut.append(_is_cut(instances.bboxes, place, width, height))
    whole.pred_instances = merged(InstanceData.cat(found), torch.cat(cut))
    return whole


def _is_cut(boxes: Tensor, place: Window, width: int, height: int) -> Tensor:
    """(M,) whether boxes (M, 4) reach a border of their slice that is none of the picture's."""
    left, top, right, bottom = place
    inner = boxes.new_tensor([left > 0, top > 0, right < width, bottom < height]).bool()
    return ((boxes - boxes.new_tensor(place)).abs().le(_EDGE) & inner).any(1)


def _fits(boxes: Tensor, places: list[Window]) -> Tensor:
    """(M,) whether boxes (M, 4) lie within a slice."""
    corners = boxes.new_tensor(places)
    return ((boxes[:, None, :2] >= corners[:, :2]) & (boxes[:, None, 2:] <= corners[:, 2:])).all(2).any(1)


def merged(found: InstanceData, cut: Tensor) -> InstanceData:
    """Each object once, best first: whole boxes suppress one another as the model's do, then cut ones on a better box.

    One box after the other, as a large picture has too many for all their pairs.

    Args:
        found: ``bboxes`` (M, 4), ``scores`` and ``labels`` (M,) in any order.
        cut: (M,) whether a slice's border cuts the box.
    """
    order = (found.scores - cut.to(found.scores) * 2).argsort(descending=True, stable=True)  # scores are at most 1
    threshold = NMSOptions().iou_threshold
    left = torch.empty_like(found.bboxes)
    kept: list[int] = []
    for place in order.tolist():
        box, better = found.bboxes[place], left[:len(kept)]
        same = (_covered(box, better) > _COVERED if cut[place] else
                overlap(better, box) - centre_distance_penalty(better, box) > threshold)
        if not same.any():
            left[len(kept)] = box
            kept.append(place)
    result = found[torch.tensor(kept, dtype=torch.long)]
    return result[result.scores.argsort(descending=True, stable=True)]


def _covered(box: Tensor, others: Tensor) -> Tensor:
    """(K,) share of a box (4,), or of another (K, 4) where that is smaller, which both have in common."""
    corners = torch.cat((torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])), 1)
    return box_area(corners) / torch.minimum(box_area(box), box_area(others)).clamp(min=1e-12)
