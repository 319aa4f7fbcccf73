"""Mixup of 8-bit pictures in whole numbers."""
from __future__ import annotations

from typing import Any

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

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Mix one sample with ``mix_results[0]``; unchanged where that has no boxes."""
        own, partner = results['img'], results['mix_results'][0]
        if any(each.dtype != np.uint8 or each.ndim != 3 for each in (own, partner['img'])):
            mixed: dict[str, Any] = super().transform(results)
            return mixed
        if not len(partner['gt_bboxes']):
            return results
        jitter = np.random.uniform(*self.ratio_range)
        flipped = np.random.uniform(0, 1) > self.flip_ratio
        image, scale = self._scaled(partner['img'], jitter)
        offset = np.array([np.random.randint(0, have - need) if have > need else 0
                           for have, need in zip(image.shape[:2], own.shape[:2])])
        target = np.full(own.shape, int(self.pad_val), np.uint8)
        seen = (image[:, ::-1] if flipped else image)[offset[0]:, offset[1]:][:own.shape[0], :own.shape[1]]
        target[:seen.shape[0], :seen.shape[1]] = seen
        self._add_boxes(results, partner, scale, image.shape[:2], flipped, offset)
        results['img'] = (own & target) + ((own ^ target) >> 1)  # the mean, rounded down, without a ninth bit
        results['img_shape'] = own.shape[:2]
        return results

    def _scaled(self, image: np.ndarray, jitter: float) -> tuple[np.ndarray, float]:
        """A picture (h, w, 3) fitted into the top left of grey (H, W, 3), both scaled by the jitter; its scale."""
        width, height = self.dynamic_scale
        scale = min(height / image.shape[0], width / image.shape[1])
        fitted = mmcv.imresize(image, (int(image.shape[1] * scale), int(image.shape[0] * scale)))
        canvas = np.full((height, width, 3), int(self.pad_val), np.uint8)
        canvas[:fitted.shape[0], :fitted.shape[1]] = fitted
        return mmcv.imresize(canvas, (int(width * jitter), int(height * jitter))), scale * jitter

    def _add_boxes(self, results: dict[str, Any], partner: dict[str, Any], scale: float, size: tuple[int, int],
                   flipped: bool, offset: np.ndarray) -> None:
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
