# COCO 2017, letterboxed to 608 x 608; lay it out as data/coco/{annotations,train2017,val2017}.
# For another set in COCO format, set data_root, ann_file, data_prefix and metainfo of the three dataloaders and
# ann_file of the two evaluators. A pipeline is fixed when this file is read: to change the input size, set the scale
# of the Letterbox step of each pipeline; mosaic and mixup follow it.
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None
img_scale = (608, 608)  # (width, height), multiples of 32

# The plan's mosaic_prob and mixup_prob take the place of prob in the steps of these names.
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(
        type='StagedMix',
        name='mosaic',  # four images around a point, each as large as its letterbox
        transforms=[
            dict(type='CutMosaic', img_scale=img_scale, center_ratio_range=(0.2, 0.8), pad_val=128.0),
        ],
        prob=0.0),
    dict(type='PhotoMetricDistortion'),
    dict(type='Letterbox', scale=img_scale, exact=False),  # within two levels, in a fifth of the time
    dict(
        type='RandomAffine',
        max_rotate_degree=5.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.7, 1.3),
        max_shear_degree=0.0,
        border_val=(128, 128, 128)),  # the letterbox's grey
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='StagedMix',
        name='mixup',  # the mean of two images
        transforms=[
            dict(type='ByteMixUp', img_scale=img_scale, ratio_range=(0.8, 1.25), flip_ratio=0.5, pad_val=128.0),
        ],
        prob=0.0),
    # keep_empty=False keeps images that lost all their boxes (mmdet's name says the opposite)
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param', 'flip',
                   'flip_direction', 'augmented')),
]
# mmdet's order: boxes are loaded after the letterbox and stay in pixels of the picture, as metrics and tools expect;
# validation moves them into the letterbox for its losses. The other order (old configs) gives the same. Inference runs
# the same pipeline: without annotations LoadAnnotations yields no boxes.
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Letterbox', scale=img_scale),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param')),
]

train_dataloader = dict(
    batch_size=48,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
        backend_args=backend_args))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='FasterCocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric='bbox',
    format_only=False,
    backend_args=backend_args)
test_evaluator = val_evaluator
