# MultiGridDet to train from nothing: the recipe that learns best when there are no weights to keep (docs/accuracy.md
# has what its parts are worth). Imported weights do not fit it, and their boxes and scores mean something else.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.1)  # statistics that keep up with a short run
model = dict(
    type='MultiGridDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='Darknet', depth=53, out_indices=(3, 4, 5), frozen_stages=-1, norm_eval=False, norm_cfg=norm_cfg),
    # Twice the neck of model5, with bridges to match, as wide as YOLOv3's: where many cells share few channels, classes
    # are learnt late.
    neck=dict(
        type='MultiGridNeck', in_channels=(1024, 512, 256), out_channels=(512, 256, 128), norm_cfg=norm_cfg),
    bbox_head=dict(
        type='MultiGridHead',
        num_classes=80,
        in_channels=(512, 256, 128),
        anchors=[[(112, 74), (149, 190), (370, 328)], [(28, 17), (56, 112), (57, 35)], [(9, 10), (13, 28), (28, 55)]],
        strides=(32, 16, 8),
        bridge_channels=(1024, 512, 256),
        norm_cfg=norm_cfg,
        xy_scale=1.0,  # at 0.15 a centre moves a seventh as far for the same gradient
        assigner=dict(type='MultiGridAssigner', conflict='nearest'),
        # Sizes are relative to the mean of the anchors by their probabilities, and the anchor is no part of the score.
        bbox_coder=dict(type='MultiGridBBoxCoder', score_factors=('objectness', 'class'), anchor_use='expected'),
        loss=dict(
            type='MultiGridLoss',
            iou_loss=dict(type='DIoULoss', loss_weight=1.0),
            coord_scale=5.0,
            object_scale=1.0,
            no_object_scale=0.5,
            class_scale=2.0,  # at 1.0 objects are found long before they are told apart, at 5.0 boxes stay loose
            anchor_scale=1.0,
            normalizers=('batch', ),
            ignore_thr=0.5,
            overlap='iou',
            overlap_weighted_coord=False,
            iou_aware_ratio=1.0,  # objectness learns how well the cell's box fits
            soft_ignore_weight=0.0,
            label_smoothing=0.0,
            class_weights=None)),
    # The cells that found an object agree on its box: the mean of the duplicates by score and overlap.
    test_cfg=dict(
        score_thr=0.005,
        nms_pre=1000,
        max_per_img=100,
        nms=dict(type='cluster', mode='weighted', iou_threshold=0.45, overlap='iou', class_agnostic=False)))
