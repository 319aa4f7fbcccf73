# The small model from backbone weights, stage 2: everything trains, at 2e-4 for two epochs after one of warmup.
_base_ = 'mgdet_nano_backbone_stage1.py'
model = dict(backbone=dict(init_cfg=None))
load_from = 'work_dirs/mgdet_nano_backbone_stage1/best.pth'
stages = [
    dict(name='full', epochs=10, freeze_level=0, lr=1e-4, warmup_epochs=1, boost=2.0, boost_epochs=2,
         mosaic_prob=0.3, mixup_prob=0.1)
]
