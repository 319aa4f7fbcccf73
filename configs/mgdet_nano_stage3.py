# The small model's stage 3: everything trains, gently; from stage 2's best.
_base_ = 'mgdet_nano_stage1.py'
load_from = 'work_dirs/mgdet_nano_stage2/best.pth'
stages = [dict(name='full', epochs=10, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1)]
