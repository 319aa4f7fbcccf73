"""Mosaic of which only what is seen is made."""
from __future__ import annotations

from typing import Any

import mmcv
import numpy as np
from mmdet.datasets.transforms import Mosaic
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import autocast_box_type

_AFFINE_DRAWS = 6  # of mmdet's RandomAffine: rotation, scale, two of shear and two of shift


@TRANSFORMS.register_module()
class CutMosaic(Mosaic):
    """mmdet's Mosaic and the cut of the top left quarter out of its canvas: an image of ``img_scale``, not of twice it.

    The same pixels, boxes and draws as of Mosaic and then a RandomAffine that neither turns, scales, shears nor shifts
    (``border=(-w // 2, -h // 2)``), so that a seed gives the samples it gave with the two. Keys and arguments are
    Mosaic's; ``center_ratio_range`` below 1 puts the point where the four meet inside the image. The samples of
    ``mix_results`` stay as they are.
    """

    leaves_partners = True  # StagedMix copies them for a step that does not say so: a second mix may see them again

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Join one sample and three ``mix_results``."""
        if np.random.uniform(0, 1) > self.prob:
            return results
        width, height = self.img_scale
        image = np.full((height, width, *results['img'].shape[2:]), self.pad_val, results['img'].dtype)
        centre = tuple(int(np.random.uniform(*self.center_ratio_range) * side) for side in self.img_scale)
        np.random.uniform(size=_AFFINE_DRAWS)
        patches, boxes = [results, *results['mix_results']], []
        for place, patch in zip(('top_left', 'top_right', 'bottom_left', 'bottom_right'), patches):
            scale, offset = self._paste(image, patch['img'], place, centre)
            boxes.append(patch['gt_bboxes'].clone())
            boxes[-1].rescale_([scale, scale])
            boxes[-1].translate_(offset)
        joined = boxes[0].cat(boxes, 0)
        if self.bbox_clip_border:
            joined.clip_([height, width])
        inside = joined.is_inside([height, width]).numpy()
        results['img'], results['img_shape'], results['gt_bboxes'] = image, image.shape[:2], joined[inside]
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            results[key] = np.concatenate([patch[key] for patch in patches])[inside]
        return results

    def _paste(self, image: np.ndarray, patch: np.ndarray, place: str,
               centre: tuple[int, ...]) -> tuple[float, tuple[int, int]]:
        """Put a picture (h, w, 3), as large as fits ``img_scale``, at its side of the centre; its scale and shift."""
        width, height = self.img_scale
        scale = min(height / patch.shape[0], width / patch.shape[1])
        patch = mmcv.imresize(patch, (int(patch.shape[1] * scale), int(patch.shape[0] * scale)))
        (left, top, right, bottom), (x, y, _, _) = self._mosaic_combine(place, centre, patch.shape[1::-1])
        room = image[top:bottom, left:right]
        room[:] = patch[y:y + room.shape[0], x:x + room.shape[1]]
        return scale, (left - x, top - y)
