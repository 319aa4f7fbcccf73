# What the runs of new_classes.py share: the small model learnt on blood cells, everything free at 1e-3. The benchmark
# sets the classes, the three datasets and the weights.
_base_ = [
    '../configs/_base_/models/multigrid_nano_scratch.py', '../configs/_base_/schedules/staged.py',
    '../configs/_base_/default_runtime.py'
]
model = dict(
    bbox_head=dict(anchors=[[(80, 76), (104, 96), (130, 120)], [(40, 38), (50, 48), (62, 59)],
                            [(14, 14), (20, 20), (28, 27)]]))  # those of multigrid_nano_bccd.py
img_scale = (320, 320)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(type='PhotoMetricDistortion'),
    dict(type='Letterbox', scale=img_scale),
    dict(
        type='RandomAffine',
        max_rotate_degree=0.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.8, 1.25),
        max_shear_degree=0.0,
        border_val=(128, 128, 128)),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param')),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Letterbox', scale=img_scale),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='DropDegenerateBoxes'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'pad_param')),
]
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CocoDataset', ann_file='', data_prefix=dict(img=''), metainfo=dict(classes=()),
                 pipeline=train_pipeline))
test_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', ann_file='', data_prefix=dict(img=''), metainfo=dict(classes=()), test_mode=True,
                 pipeline=test_pipeline))
val_dataloader = test_dataloader
test_evaluator = dict(type='FasterCocoMetric', ann_file='', metric='bbox', format_only=False)
val_evaluator = test_evaluator
val_cfg = dict(others=dict(old=dict(dataloader=test_dataloader, evaluator=test_evaluator)))
train_cfg = dict(val_interval=1000)  # after the last epoch, which is the one that counts
plan = dict(start='full', allow=['rate', 'loss-scales'])  # the cells' recipe doubles the class loss
stages = [dict(name='all', epochs=10, freeze_level=0, lr=1e-3)]
default_hooks = dict(
    checkpoint=dict(interval=1000, save_best=None),
    drift_guard=dict(divergence='warn', nan='warn'),
    channels_last=dict(type='ChannelsLastHook'))
