"""Mixup of 8-bit pictures in whole numbers."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet.datasets.transforms import MixUp
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import autocast_box_type


@TRANSFORMS.register_module()
class ByteMixUp(MixUp):
    """mmdet's MixUp for 8-bit pictures: the same draws and boxes, pixels within one level, a fraction of the time.

    mmdet scales the partner in double precision, cuts its fractions off and takes the mean in single precision; here it
    is scaled in 8 bit, rounded. Other pictures (grey, float) go mmdet's way. Keys and arguments are mmdet's.
    """

    leaves_partners = True  # see CutMosaic

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Mix one sample with ``mix_results[0]``; unchanged where that has no boxes."""
        own, partner = results['img'], results['mix_results'][0]
        if any(each.dtype != np.uint8 or each.ndim != 3 for each in (own, partner['img'])):
            results['mix_results'] = copy.deepcopy(results['mix_results'])  # mmdet scales its boxes in place
            made: dict[str, Any] = super().transform(results)
            return made
        if not len(partner['gt_bboxes']):
            return results
        own = _contiguous(own)
        jitter = np.random.uniform(*self.ratio_range)
        flipped = np.random.uniform(0, 1) > self.flip_ratio
        image, scale = self._scaled(partner['img'], jitter)
        offset = [np.random.randint(0, have - need) if have > need else 0
                  for have, need in zip(image.shape[:2], own.shape[:2])]
        target = _placed(image, own.shape, offset, flipped, int(self.pad_val))
        self._add_boxes(results, partner, scale, image.shape[:2], flipped, offset)
        mixed = own & target  # the mean, rounded down, without a ninth bit: own & target + (own ^ target) / 2
        target ^= own
        target >>= 1
        mixed += target
        results['img'] = mixed
        results['img_shape'] = own.shape[:2]
        return results

    def _scaled(self, image: np.ndarray, jitter: float) -> tuple[np.ndarray, float]:
        """A picture (h, w, 3) fitted into the top left of grey (H, W, 3), both scaled by the jitter; its scale."""
        width, height = self.dynamic_scale
        scale = min(height / image.shape[0], width / image.shape[1])
        fitted = mmcv.imresize(_contiguous(image), (int(image.shape[1] * scale), int(image.shape[0] * scale)))
        canvas = _placed(fitted, (height, width, 3), (0, 0), False, int(self.pad_val))
        return mmcv.imresize(canvas, (int(width * jitter), int(height * jitter))), scale * jitter

    def _add_boxes(self, results: dict[str, Any], partner: dict[str, Any], scale: float, size: tuple[int, int],
                   flipped: bool, offset: Sequence[int]) -> None:
        """Move the partner's boxes as its picture (h, w) was, join them to the sample's and drop those outside."""
        shape, boxes = results['img'].shape[:2], partner['gt_bboxes']
        boxes.rescale_([scale, scale])
        if self.bbox_clip_border:
            boxes.clip_(size)
        if flipped:
            boxes.flip_(size, direction='horizontal')
        boxes.translate_([-offset[1], -offset[0]])
        if self.bbox_clip_border:
            boxes.clip_(shape)
        joined = boxes.cat((results['gt_bboxes'], boxes), dim=0)
        inside = joined.is_inside(shape).numpy()
        results['gt_bboxes'] = joined[inside]
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            results[key] = np.concatenate((results[key], partner[key]))[inside]


def _contiguous(image: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) row by row; OpenCV copies one that is mirrored as a view in a twentieth of numpy's time."""
    return cv2.flip(image[:, ::-1], 1) if image.strides[1] < 0 < image.strides[0] else np.ascontiguousarray(image)


def _placed(image: np.ndarray, shape: tuple[int, ...], offset: Sequence[int], flipped: bool, grey: int) -> np.ndarray:
    """What is seen of a picture from an offset (y, x) on, mirrored first where that is said, in the top left of grey.

    An array of its own.
    """
    seen = image[offset[0]:][:shape[0]]
    if flipped:
        end = image.shape[1] - offset[1]
        seen = cv2.flip(seen[:, max(0, end - shape[1]):end], 1)
    else:
        seen = seen[:, offset[1]:][:, :shape[1]]
    target = np.full(shape, grey, np.uint8)
    target[:seen.shape[0], :seen.shape[1]] = seen
    return target
