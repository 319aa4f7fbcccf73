# Full weights, stage 2 of 3: the neck is freed too, at half the rate, with mosaic and mixup; from stage 1's best.
_base_ = 'mgdet_model5_stage1.py'
load_from = 'work_dirs/mgdet_model5_stage1/best.pth'
stages = [dict(name='neck', epochs=5, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1)]
