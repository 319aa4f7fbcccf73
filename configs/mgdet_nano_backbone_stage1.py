# The small model from backbone weights, stage 1: neck and head learn from nothing on frozen features.
_base_ = [
    '_base_/models/multigrid_nano.py', '_base_/datasets/digits_target.py', '_base_/schedules/staged.py',
    '_base_/default_runtime.py'
]
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='weights/digits_source.pth', prefix='backbone.')))
train_dataloader = dict(batch_size=8)
plan = dict(start='backbone')
stages = [dict(name='neck', epochs=10, freeze_level=1, lr=1e-4, mosaic_prob=0.3, mixup_prob=0.1)]
default_hooks = dict(logger=dict(interval=25))
