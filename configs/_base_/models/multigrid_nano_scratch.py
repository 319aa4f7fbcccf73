# The small model to train from nothing.
_base_ = 'multigrid_scratch.py'
model = dict(
    backbone=dict(type='ScaledDarknet', widen_factor=0.25),
    neck=dict(in_channels=(256, 128, 64), out_channels=(128, 64, 32)),
    bbox_head=dict(num_classes=10, in_channels=(128, 64, 32), bridge_channels=(256, 128, 64)))
