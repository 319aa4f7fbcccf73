# The small model from nothing on the embedded source domain: about three minutes on two cores.
_base_ = [
    '_base_/models/multigrid_nano.py', '_base_/datasets/digits_source.py', '_base_/schedules/adam_cosine.py',
    '_base_/default_runtime.py'
]
# Faster statistics than the weights' own 0.01: a short run from nothing has to catch up with its weights.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.1)
model = dict(
    backbone=dict(zero_init_residual=True, norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg))
lr = 2e-3
max_epochs = 6
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-2,
        by_epoch=True,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
