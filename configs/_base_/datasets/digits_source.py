# The embedded digits, source domain: digits 0-7, dark ink on bright clouds, 192 x 192; made on first use by the tools
# (mgdet_plugin.datasets.ensure_digits). All ten classes are in the head: the target domain brings 8 and 9.
dataset_type = 'CocoDataset'
data_root = 'data/mgdet_digits/source/'
img_scale = (192, 192)  # (width, height), multiples of 32
metainfo = dict(
    classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[(220, 20, 60), (0, 120, 220), (0, 150, 80), (250, 130, 0), (130, 60, 200), (0, 160, 170), (200, 0, 150),
             (120, 90, 20), (90, 90, 255), (255, 80, 80)])

# Light and without flips: a mirrored digit is another sign. The plan's mosaic_prob and mixup_prob take the place of
# prob in the steps of these names.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(
        type='StagedMix',
        name='mosaic',  # four images around a point, each as large as its letterbox
        transforms=[
            dict(type='CutMosaic', img_scale=img_scale, center_ratio_range=(0.2, 0.8), pad_val=128.0),
        ],
        prob=0.0),
    dict(type='Letterbox', scale=img_scale),
    dict(
        type='RandomAffine',
        max_rotate_degree=2.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.8, 1.2),
        max_shear_degree=0.0,
        border_val=(128, 128, 128)),  # the letterbox's grey
    dict(
        type='StagedMix',
        name='mixup',  # the mean of two images; flip_ratio=1.0 is never
        transforms=[
            dict(type='ByteMixUp', img_scale=img_scale, ratio_range=(0.8, 1.25), flip_ratio=1.0, pad_val=128.0),
        ],
        prob=0.0),
    # keep_empty=False keeps images that lost all their boxes (mmdet's name says the opposite)
    dict(type='FilterAnnotations', min_gt_bbox_wh=(4, 4), keep_empty=False),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param', 'augmented')),
]
# mmdet's order: boxes are loaded after the letterbox and stay in pixels of the picture, as metrics and tools expect;
# validation moves them into the letterbox for its losses. The other order (old configs) gives the same. Inference runs
# the same pipeline: without annotations LoadAnnotations yields no boxes.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Letterbox', scale=img_scale),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param')),
]

# What `--tta` looks at: three sizes; mmdet's flips would show other signs.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Letterbox', scale=(side, side)) for side in (192, 224, 160)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='DropDegenerateBoxes')],
            [dict(type='PackDetInputs', meta_keys=test_pipeline[-1]['meta_keys'])],
        ]),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='test.json',
        data_prefix=dict(img='test/'),
        test_mode=True,
        pipeline=test_pipeline))

val_evaluator = dict(type='FasterCocoMetric', ann_file=data_root + 'val.json', metric='bbox', format_only=False)
test_evaluator = dict(type='FasterCocoMetric', ann_file=data_root + 'test.json', metric='bbox', format_only=False)
