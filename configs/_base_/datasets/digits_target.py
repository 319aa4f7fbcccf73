# The embedded digits, target domain: digits 4-9, bright ink, tilted, on dark stripes.
_base_ = './digits_source.py'
# What the weights come from, for a config that follows how much of it is kept:
# val_cfg=dict(others=dict(old=old_domain)).
old_domain = dict(dataloader={{_base_.val_dataloader}}, evaluator={{_base_.val_evaluator}})

data_root = 'data/mgdet_digits/target/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = dict(ann_file=data_root + 'test.json')
