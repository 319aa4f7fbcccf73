# multigrid_nano_bccd.py trained to the end: longer, with mosaic, more change of scale and more decay of weights.
_base_ = 'multigrid_nano_bccd.py'
canvas = (320, 256)  # (width, height): what images of 640 x 480 are resized and padded to
grey = (128, 128, 128)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='Pad', size_divisor=32, pad_val=dict(img=grey)),
    dict(
        type='RandomApply',
        prob=0.3,
        transforms=[
            # Four images around a point of a canvas of twice the sides, of which the second step keeps a quarter.
            dict(type='CachedMosaic', img_scale=canvas, center_ratio_range=(0.2, 0.8), pad_val=128.0),
            dict(
                type='RandomAffine',
                max_rotate_degree=0.0,
                max_translate_ratio=0.0,
                scaling_ratio_range=(1.0, 1.0),
                max_shear_degree=0.0,
                border=(-canvas[0] // 2, -canvas[1] // 2),
                border_val=grey),
        ]),
    dict(type='PhotoMetricDistortion'),
    dict(
        type='RandomAffine',
        max_rotate_degree=0.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.7, 1.4),
        max_shear_degree=0.0,
        border_val=grey),
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
max_epochs = 56
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
optim_wrapper = dict(optimizer=dict(weight_decay=0.02))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs, eta_min_ratio=0.02, convert_to_iter_based=True),
]
