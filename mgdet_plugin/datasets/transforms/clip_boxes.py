"""Boxes that a crop cut: held inside the image, and dropped where too little of the object is left."""
from __future__ import annotations

from typing import Any

from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import BaseBoxes, autocast_box_type

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import keep_boxes


def clip_boxes(results: dict[str, Any], size: tuple[int, int], min_visibility: float = 0.0) -> None:
    """Hold a sample's boxes inside its image (h, w), and drop those of which too little is left with labels and flags.

    The sample gets boxes of its own, the given ones stay as they are. ``min_visibility`` is the smallest share of a
    box's area inside the image with which it stays; boxes without area inside never do.
    """
    whole: BaseBoxes = results['gt_bboxes']
    height, width = size
    corners = whole.tensor.clamp(min=0).minimum(whole.tensor.new_tensor((width, height, width, height)))
    results['gt_bboxes'] = type(whole)(corners, clone=False)
    sides = corners[..., 2:] - corners[..., :2]
    keep = (sides > 0).all(-1)
    if min_visibility:
        keep &= sides.prod(-1) / whole.areas >= min_visibility
    keep_boxes(results, keep)


@TRANSFORMS.register_module()
class ClipBoxes(BaseTransform):
    """Hold boxes inside the image and drop those of which less than a share is left.

    mmdet's affine step holds boxes inside the image itself and keeps every sliver. Where annotators leave slivers out,
    a detector learns to find objects at the edge that count as wrong. Let the step before leave the boxes as they are
    (``bbox_clip_border=False``), or there is nothing to compare with. A mosaic is cut at the edge of its canvas, which
    a later step may move inside the image, so it must go on clipping itself.

    Required keys: ``img_shape`` (h, w), ``gt_bboxes`` (G, 4). Modified, kept aligned: ``gt_bboxes``,
    ``gt_bboxes_labels``, ``gt_ignore_flags``.

    Args:
        min_visibility: the smallest share of a box's area inside the image with which it stays, in [0, 1]. Boxes wholly
            outside never stay. Default 0.5.

    Raises:
        UserError: (a ValueError) for a share that is no number in [0, 1].
    """

    def __init__(self, min_visibility: float = 0.5) -> None:
        if not isinstance(min_visibility, (int, float)) or not 0 <= min_visibility <= 1:
            raise UserError(f'ClipBoxes: min_visibility must be a number in [0, 1], got {min_visibility!r}')
        self.min_visibility = float(min_visibility)

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Clip and filter the boxes of one sample, in place."""
        if 'gt_bboxes' in results:  # not in a pipeline without LoadAnnotations
            clip_boxes(results, results['img_shape'][:2], self.min_visibility)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(min_visibility={self.min_visibility})'
