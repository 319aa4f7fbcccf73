"""True boxes of a sample in the space where they are needed: the network's input, or the original picture."""
from __future__ import annotations

import numpy as np
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, get_box_tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.letterbox import LetterboxScale, letterbox_boxes, placement, unletterbox_boxes


def truth_in_input(sample: DetDataSample, scaled: bool = True) -> DetDataSample:
    """The sample, or a copy of it, whose true and ignored boxes are in pixels of the network's input, for losses.

    Args:
        sample: A packed sample; a letterboxed one says itself where its boxes are.
        scaled: Of others: whether their boxes were scaled with the picture, as in training.

    Raises:
        UserError: It cannot be told where the boxes lie.
    """
    return _placed(sample, scaled, True)


def truth_in_original(sample: DetDataSample, scaled: bool = False) -> DetDataSample:
    """The sample, or a copy of it, whose true and ignored boxes are in pixels of the original picture, for metrics.

    Its metas hold a plain ``scale_factor`` and ``pad_param``, so that it can be pickled for a reader without this
    package.

    Args:
        sample: A packed sample; a letterboxed one says itself where its boxes are.
        scaled: Of others: whether their boxes were scaled with the picture; mmdet's own test pipelines load them later.

    Raises:
        UserError: It cannot be told where the boxes lie.
    """
    return _placed(sample, scaled, False)


def _placed(sample: DetDataSample, scaled: bool, inside: bool) -> DetDataSample:
    meta = sample.metainfo
    scale = meta.get('scale_factor')
    letterboxed = isinstance(scale, LetterboxScale)
    lies_inside = scale.moved_boxes if letterboxed else scaled
    if scale is None or (lies_inside == inside and (inside or not letterboxed)):
        return sample
    if inside and letterboxed and any(scale.turned(meta)):
        raise UserError('boxes are loaded after the Letterbox and the picture is flipped after it, so they may not lie '
                        'where their objects are; put LoadAnnotations before the Letterbox')
    factors, padding = placement(meta)
    placed = sample.clone()
    if letterboxed:
        placed.set_metainfo(dict(scale_factor=factors, pad_param=np.array(padding, dtype=np.float32)))
    move = letterbox_boxes if inside else unletterbox_boxes
    for name in ('gt_instances', 'ignored_instances'):
        objects = sample.get(name)
        if lies_inside != inside and objects is not None and 'bboxes' in objects:
            objects = objects.clone()
            boxes = objects.bboxes
            moved = move(get_box_tensor(boxes), factors, padding)
            objects.bboxes = type(boxes)(moved) if isinstance(boxes, BaseBoxes) else moved
            setattr(placed, name, objects)
    return placed
