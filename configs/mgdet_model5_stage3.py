# Full weights, stage 3 of 3: everything trains, gently; from stage 2's best.
_base_ = 'mgdet_model5_stage1.py'
load_from = 'work_dirs/mgdet_model5_stage2/best.pth'
stages = [
    dict(name='full', epochs=90, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1,
         lr_mult=dict(backbone=1.0, neck=1.0, bbox_head=1.0))
]
