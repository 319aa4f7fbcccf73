# MultiGridDet as model5: 80 COCO classes, 44,996,904 weights. Predictions have 5 + 3 + num_classes channels.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)  # Keras: epsilon 1e-3, momentum 0.99
model = dict(
    type='MultiGridDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='Darknet', depth=53, out_indices=(3, 4, 5), frozen_stages=-1, norm_eval=False, norm_cfg=norm_cfg),
    neck=dict(
        type='MultiGridNeck', in_channels=(1024, 512, 256), out_channels=(256, 128, 64), norm_cfg=norm_cfg),
    bbox_head=dict(
        type='MultiGridHead',
        num_classes=80,
        in_channels=(256, 128, 64),
        # Pixels, the same at every input size.
        anchors=[[(112, 74), (149, 190), (370, 328)], [(28, 17), (56, 112), (57, 35)], [(9, 10), (13, 28), (28, 55)]],
        strides=(32, 16, 8),
        # 8, 4 and 2 times 88: the width the weights were trained with. Keep it with another number of classes.
        bridge_channels=(704, 352, 176),
        norm_cfg=norm_cfg,
        assigner=dict(type='MultiGridAssigner', conflict='reference'),
        bbox_coder=dict(type='MultiGridBBoxCoder'),
        loss=dict(
            type='MultiGridLoss',
            # model5's scales; fine-tuning keeps them.
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
