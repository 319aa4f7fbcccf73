# The small model from backbone weights, both stages in one run.
_base_ = 'mgdet_nano_backbone_stage1.py'
stages = [
    dict(name='neck', epochs=10, freeze_level=1, lr=1e-4, mosaic_prob=0.3, mixup_prob=0.1),
    dict(name='full', epochs=10, freeze_level=0, lr=1e-4, warmup_epochs=1, boost=2.0, boost_epochs=2,
         mosaic_prob=0.3, mixup_prob=0.1),
]
