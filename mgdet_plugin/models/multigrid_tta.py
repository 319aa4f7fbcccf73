"""Test-time augmentation: what the views of one picture agree on, by the head's own rule of what is a duplicate."""
from __future__ import annotations

from typing import Any

import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mgdet_plugin.models.maths.letterbox import flip_of
from mgdet_plugin.models.maths.suppression import BoxPairs, cluster_nms, weighted_boxes_fusion
from mgdet_plugin.models.multigrid_head import MultiGridHead

TTA_CFG = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@MODELS.register_module()
class MultiGridTTA(DetTTAModel):
    """mmdet's ``DetTTAModel`` that fuses the views of a ``MultiGridHead``; other heads are merged as mmdet does.

    mmdet keeps the best of all views for each class, so every mistake of any view stays. Here boxes of one object, by
    the ``nms`` of the head's test_cfg, become one: their mean weighted by score and overlap, with the label of the best
    and the mean of the views' scores, 0 for a view that misses it (as in "Weighted boxes fusion", Solovyev et al.,
    2021, with the head's measure; with ``nms.type='wbf'`` by that paper). True boxes are those of the view that is not
    flipped, where there is one.

    Args:
        module: The detector or its config.
        tta_cfg: Of other heads: ``nms`` and ``max_per_img``. Default: those of mmdet's test script.
        data_preprocessor: As in ``DetTTAModel``.
    """

    def __init__(self, module: Any, tta_cfg: Any = None, data_preprocessor: Any = None) -> None:
        super().__init__(tta_cfg=ConfigDict(tta_cfg or TTA_CFG), module=module, data_preprocessor=data_preprocessor)

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        if len(data_samples) == 1 and flip_of(data_samples[0].metainfo) is None:
            return data_samples[0]  # nothing to fuse: exactly what is found without augmentation
        views = sorted(data_samples, key=lambda sample: flip_of(sample.metainfo) is not None)  # stable
        head = getattr(self.module, 'bbox_head', None)
        if not isinstance(head, MultiGridHead):
            return super()._merge_single_sample(views)
        found = [view.pred_instances for view in views]
        metas = [dict(flip=False, flip_direction=None, **view.metainfo) if 'flip' not in view else view.metainfo
                 for view in views]  # without RandomFlip nothing says so
        boxes, scores = self.merge_aug_bboxes([each.bboxes for each in found], [each.scores for each in found], metas)
        order = scores.argsort(descending=True, stable=True)
        labels = torch.cat([each.labels for each in found])[order]
        options = head.nms_options(head.test_cfg)
        pairs = BoxPairs(boxes[order], None if options.class_agnostic else labels, options.overlap,
                         options.type == 'diou')
        if options.type == 'wbf':
            left = weighted_boxes_fusion(pairs, scores[order], options.iou_threshold, len(views))
        else:
            left = cluster_nms(pairs, scores[order], options.iou_threshold, 'weighted', len(views))
        best = slice(head.test_cfg['max_per_img'])
        merged = views[0]
        merged.pred_instances = InstanceData(bboxes=left.boxes[best], scores=left.scores[best],
                                             labels=labels[left.indices][best])
        return merged
