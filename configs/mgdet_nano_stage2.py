# The small model's stage 2: the neck is freed too, with mosaic and mixup; from stage 1's best.
_base_ = 'mgdet_nano_stage1.py'
load_from = 'work_dirs/mgdet_nano_stage1/best.pth'
stages = [dict(name='neck', epochs=5, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1)]
