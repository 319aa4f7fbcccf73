# BCCD, 364 microscope images of blood cells in COCO format, 320 pixels wide: train on train and val, measure on test.
# Lay it out as data/bccd/{annotations,images}. Resized and padded at the bottom as mmdet does, not letterboxed, so that
# any detector of mmdet can be trained and measured on it: only MultiGridHead takes boxes out of a letterbox.
dataset_type = 'CocoDataset'
data_root = 'data/bccd/'
img_scale = (320, 320)  # (width, height) the image is fitted into
fit = [
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='Pad', size_divisor=32, pad_val=dict(img=(128, 128, 128))),
]
metainfo = dict(classes=('WBC', 'RBC', 'Platelets'), palette=[(90, 60, 220), (220, 20, 60), (0, 150, 80)])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(type='PhotoMetricDistortion'),
    *fit,
    dict(
        type='RandomAffine',
        max_rotate_degree=0.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.8, 1.25),
        max_shear_degree=0.0,
        border_val=(128, 128, 128)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    # keep_empty=False keeps images that lost all their boxes (mmdet's name says the opposite)
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                   'flip_direction')),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    *fit,
    dict(type='LoadAnnotations', with_bbox=True),  # after it, as mmdet does: in pixels of the picture
    dict(type='DropDegenerateBoxes'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

_split = dict(type=dataset_type, data_root=data_root, metainfo=metainfo, data_prefix=dict(img='images/'))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(ann_file='annotations/train.json', pipeline=train_pipeline, **_split),
            dict(ann_file='annotations/val.json', pipeline=train_pipeline, **_split),
        ]))
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='annotations/test.json', test_mode=True, pipeline=test_pipeline, **_split))
# Followed on the test set, by which no epoch is chosen; to choose one, train without val.json and validate on it.
val_dataloader = test_dataloader
test_evaluator = dict(
    type='FasterCocoMetric', ann_file=data_root + 'annotations/test.json', metric='bbox', format_only=False)
val_evaluator = test_evaluator
