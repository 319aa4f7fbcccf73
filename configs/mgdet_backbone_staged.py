# Backbone weights, both stages in one run. After an epoch of warmup the second stage's rate is 2e-4 for two epochs,
# then a cosine from 1e-4.
_base_ = 'mgdet_backbone_stage1.py'
stages = [
    dict(name='neck', epochs=10, freeze_level=1, lr=1e-4, mosaic_prob=0.3, mixup_prob=0.1),
    dict(name='full', epochs=90, freeze_level=0, lr=1e-4, warmup_epochs=1, boost=2.0, boost_epochs=2,
         mosaic_prob=0.3, mixup_prob=0.1),
]
