# Full weights, stage 1 of 3: only the three predict convolutions train, at 1e-4, for 5 epochs (3 of warmup), without
# mosaic and mixup. 608 pixels, batch 48 on one 80 GB card.
_base_ = [
    '_base_/models/multigrid_darknet53.py', '_base_/datasets/coco_letterbox.py', '_base_/schedules/staged.py',
    '_base_/default_runtime.py'
]
load_from = 'weights/model5.pth'
plan = dict(start='full')
stages = [dict(name='head', epochs=5, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0)]
