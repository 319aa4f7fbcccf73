"""mmdet's own detectors, small: YOLOv3 on Darknet, RetinaNet on a ResNet with mmdet's usual frozen stem."""
from __future__ import annotations

from typing import Any

BN = dict(type='BN', requires_grad=True)
PREPROCESSOR = dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], pad_size_divisor=32)
YOLOV3: dict[str, Any] = dict(
    type='YOLOV3', data_preprocessor=PREPROCESSOR,
    backbone=dict(type='ScaledDarknet', depth=53, widen_factor=1 / 16, out_indices=(3, 4, 5), norm_cfg=BN,
                  norm_eval=False),
    neck=dict(type='YOLOV3Neck', num_scales=3, in_channels=[64, 32, 16], out_channels=[32, 16, 8]),
    bbox_head=dict(
        type='YOLOV3Head', num_classes=3, in_channels=[32, 16, 8], out_channels=[32, 16, 8],
        anchor_generator=dict(type='YOLOAnchorGenerator', strides=[32, 16, 8],
                              base_sizes=[[(40, 40)] * 3, [(20, 20)] * 3, [(10, 10)] * 3]),
        bbox_coder=dict(type='YOLOBBoxCoder'), featmap_strides=[32, 16, 8]),
    train_cfg=dict(assigner=dict(type='GridAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0)))
RETINANET: dict[str, Any] = dict(
    type='RetinaNet', data_preprocessor=PREPROCESSOR,
    backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
                  norm_cfg=BN, norm_eval=False),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, start_level=1, num_outs=3),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
                              strides=[8, 16, 32])),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                                 ignore_iof_thr=-1), sampler=dict(type='PseudoSampler'), allowed_border=-1,
                   pos_weight=-1, debug=False))
