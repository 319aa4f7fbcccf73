# MultiGridDet at a quarter of the width for 192 pixels: the same 66 + 3 convolutions, 2.8 M weights.
_base_ = 'multigrid_darknet53.py'
model = dict(
    backbone=dict(type='ScaledDarknet', widen_factor=0.25),
    neck=dict(in_channels=(256, 128, 64), out_channels=(64, 32, 16)),
    bbox_head=dict(
        num_classes=10,
        in_channels=(64, 32, 16),
        anchors=[[(36, 58), (43, 61), (52, 66)], [(26, 36), (28, 45), (35, 47)], [(15, 27), (20, 28), (21, 36)]],
        bridge_channels=(144, 72, 36)))
