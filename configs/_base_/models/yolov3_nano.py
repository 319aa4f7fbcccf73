# mmdet's YOLOv3 at a quarter of the width: the peer the small MultiGridDet is measured against.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.1)
model = dict(
    type='YOLOV3',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ScaledDarknet', depth=53, widen_factor=0.25, out_indices=(3, 4, 5), norm_eval=False, norm_cfg=norm_cfg),
    neck=dict(
        type='YOLOV3Neck', num_scales=3, in_channels=[256, 128, 64], out_channels=[128, 64, 32], norm_cfg=norm_cfg),
    bbox_head=dict(
        type='YOLOV3Head',
        num_classes=10,
        in_channels=[128, 64, 32],
        out_channels=[256, 128, 64],
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            type='YOLOAnchorGenerator',
            base_sizes=[[(34, 50), (40, 58), (48, 66)], [(23, 31), (26, 36), (29, 43)], [(16, 26), (19, 27), (20, 35)]],
            strides=[32, 16, 8]),
        bbox_coder=dict(type='YOLOBBoxCoder'),
        featmap_strides=[32, 16, 8],
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0, reduction='sum'),
        loss_conf=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0, reduction='sum'),
        loss_xy=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0, reduction='sum'),
        loss_wh=dict(type='MSELoss', loss_weight=2.0, reduction='sum')),
    train_cfg=dict(assigner=dict(type='GridAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0)),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        conf_thr=0.005,
        nms=dict(type='nms', iou_threshold=0.45),
        max_per_img=100))
