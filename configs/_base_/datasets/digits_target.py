# The embedded digits, target domain: digits 4-9, bright ink, tilted, on dark stripes.
_base_ = './digits_source.py'

data_root = 'data/mgdet_digits/target/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = dict(ann_file=data_root + 'test.json')
