# The small model's three stages in one run: what `make demo` shows.
_base_ = 'mgdet_nano_stage1.py'
stages = [
    dict(name='head', epochs=5, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0),
    dict(name='neck', epochs=5, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1),
    dict(name='full', epochs=10, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1),
]
train_cfg = dict(val_interval=5)  # at the end of each stage and amid the last
