# MultiGridDet at a quarter of the width for 192 pixels: the same 66 + 3 convolutions, 2.8 M weights. All but widths,
# classes and anchors is as in multigrid_darknet53.py.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='MultiGridDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ScaledDarknet',
        depth=53,
        widen_factor=0.25,
        out_indices=(3, 4, 5),
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=norm_cfg),
    neck=dict(type='MultiGridNeck', in_channels=(256, 128, 64), out_channels=(64, 32, 16), norm_cfg=norm_cfg),
    bbox_head=dict(
        type='MultiGridHead',
        num_classes=10,
        in_channels=(64, 32, 16),
        anchors=[[(36, 58), (43, 61), (52, 66)], [(26, 36), (28, 45), (35, 47)], [(15, 27), (20, 28), (21, 36)]],
        strides=(32, 16, 8),
        bridge_channels=(144, 72, 36),
        norm_cfg=norm_cfg,
        assigner=dict(type='MultiGridAssigner', conflict='reference'),
        bbox_coder=dict(type='MultiGridBBoxCoder'),
        loss=dict(
            type='MultiGridLoss',
            coord_scale=5.0,
            object_scale=1.0,
            no_object_scale=0.5,
            class_scale=1.0,
            anchor_scale=1.0,
            normalizers=('batch', ),
            ignore_thr=0.5,
            overlap_weighted_coord=True,
            iou_aware_ratio=0.5,
            soft_ignore_weight=0.1,
            label_smoothing=0.01,
            class_weights='balanced')),
    test_cfg=dict(
        score_thr=0.1,
        nms_pre=1000,
        max_per_img=500,
        nms=dict(type='diou', iou_threshold=0.45, overlap='iou', class_agnostic=True)))
