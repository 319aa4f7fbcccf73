# Backbone weights, stage 1 of 2: neck and head learn from nothing on frozen features, for 10 epochs (3 of warmup).
_base_ = [
    '_base_/models/multigrid_darknet53.py', '_base_/datasets/coco_letterbox.py', '_base_/schedules/staged.py',
    '_base_/default_runtime.py'
]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='weights/darknet53.pth', prefix='backbone.')))
plan = dict(start='backbone')
stages = [dict(name='neck', epochs=10, freeze_level=1, lr=1e-4, mosaic_prob=0.3, mixup_prob=0.1)]
