# The small model to train from nothing.
_base_ = 'multigrid_scratch.py'
model = dict(
    backbone=dict(type='ScaledDarknet', widen_factor=0.25),
    neck=dict(in_channels=(256, 128, 64), out_channels=(64, 32, 16)),
    bbox_head=dict(num_classes=10, in_channels=(64, 32, 16), bridge_channels=(144, 72, 36)))
