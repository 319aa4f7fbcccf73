# The small model from nothing on the embedded source domain: about three minutes on two cores.
_base_ = [
    '_base_/models/multigrid_nano.py', '_base_/datasets/digits_source.py', '_base_/schedules/adam_cosine.py',
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
lr = 3e-3
max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# The first gradients are large; a long memory of their squares would hold the rate down.
optim_wrapper = dict(optimizer=dict(lr=lr, betas=(0.9, 0.98)), clip_grad=dict(max_norm=20))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.02,
        by_epoch=True,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs - max_epochs // 2,
        convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
