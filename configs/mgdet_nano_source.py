# The small model from nothing on the embedded source domain: about three minutes on two cores.
_base_ = [
    '_base_/models/multigrid_nano.py', '_base_/datasets/digits_source.py', '_base_/schedules/staged.py',
    '_base_/default_runtime.py'
]
# Statistics that keep up with a short run, and a tenth of model5's scales but for the class: from nothing, boxes and
# objectness would drown the class gradient for as long as this run lasts.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.1)
model = dict(
    backbone=dict(norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(
        norm_cfg=norm_cfg,
        loss=dict(coord_scale=0.5, object_scale=0.1, no_object_scale=0.05, anchor_scale=0.1, class_weights=None)))
train_dataloader = dict(batch_size=8)
# From nothing, so the whole network trains: 50 iterations of warmup, the full rate to the middle, then a cosine.
plan = dict(start='nothing')
stages = [
    dict(name='all', epochs=4, freeze_level=0, lr=3e-3, warmup_epochs=50 / 75, warmup_ratio=0.02,
         boost=1.0, boost_epochs=2 - 50 / 75, eta_min_ratio=0.02)
]
train_cfg = dict(val_interval=4)
# The first gradients are large; a long memory of their squares would hold the rate down.
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.98)), clip_grad=dict(max_norm=20))
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
