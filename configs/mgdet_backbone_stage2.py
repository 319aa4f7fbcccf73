# Backbone weights, stage 2 of 2: everything trains; from stage 1's best. After an epoch of warmup the rate is 2e-4 for
# two epochs, then a cosine from 1e-4.
_base_ = 'mgdet_backbone_stage1.py'
model = dict(backbone=dict(init_cfg=None))
load_from = 'work_dirs/mgdet_backbone_stage1/best.pth'
stages = [
    dict(name='full', epochs=90, freeze_level=0, lr=1e-4, warmup_epochs=1, boost=2.0, boost_epochs=2,
         mosaic_prob=0.3, mixup_prob=0.1)
]
