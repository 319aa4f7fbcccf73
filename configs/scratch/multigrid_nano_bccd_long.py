# multigrid_nano_bccd.py trained to the end: longer, more change of scale, more decay of weights. Objects of which less
# than half is left at an edge are no objects, as slivers seem to be to the annotators; the objectness leans less on the
# overlap, by which tight boxes come before sure ones; a box is scored by the five best of its cells.
_base_ = [
    '../_base_/models/multigrid_nano_scratch.py', '../_base_/datasets/bccd.py', '../_base_/schedules/scratch.py'
]
grey = (128, 128, 128)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(type='PhotoMetricDistortion'),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='Pad', size_divisor=32, pad_val=dict(img=grey)),
    dict(
        type='RandomAffine',
        max_rotate_degree=0.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.7, 1.4),
        max_shear_degree=0.0,
        border_val=grey,
        bbox_clip_border=False),
    dict(type='ClipBoxes', min_visibility=0.5),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')),
]
split = dict(
    type='CocoDataset', data_root={{_base_.data_root}}, metainfo={{_base_.metainfo}}, data_prefix=dict(img='images/'),
    pipeline=train_pipeline)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(ann_file='annotations/train.json', **split),
            dict(ann_file='annotations/val.json', **split),
        ]))
model = dict(
    bbox_head=dict(
        num_classes=3,
        # Pixels, those of multigrid_nano_bccd.py.
        anchors=[[(80, 76), (104, 96), (130, 120)], [(40, 38), (50, 48), (62, 59)], [(14, 14), (20, 20), (28, 27)]],
        loss=dict(iou_aware_ratio=0.5)),
    test_cfg=dict(nms=dict(iou_threshold=0.55, votes=5)))
max_epochs = 60
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
optim_wrapper = dict(optimizer=dict(weight_decay=0.02))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, eta_min_ratio=0.02, convert_to_iter_based=True),
]
randomness = dict(seed=0)
