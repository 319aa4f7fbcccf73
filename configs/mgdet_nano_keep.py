# The small model learns the target domain and keeps the source domain, from 50 of its pictures without labels: what
# `make demo` shows. Held to what it thought of them, everything may learn at twenty times the guide's rate
# (docs/retention.md has the figures), which the rule on rates must be told.
_base_ = 'mgdet_nano_stage1.py'
keep = dict(images='data/mgdet_digits/source/train/', images_used=50)
plan = dict(start='full', allow=['rate'])
stages = [dict(name='all', epochs=20, freeze_level=0, lr=2e-3, mosaic_prob=0.3, mixup_prob=0.1)]
train_cfg = dict(val_interval=5)
