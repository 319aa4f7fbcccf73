# Full weights, the guide's three stages in one run, held to what the weights thought of pictures like those they were
# trained on: put some, without labels, into data/old/, or name another folder with --cfg-options keep.images=FOLDER.
# At the guide's low rates the old domain needs three times the weight (docs/retention.md has the figures).
_base_ = 'mgdet_model5_stage1.py'
keep = dict(images='data/old/', weight=3.0)
stages = [
    dict(name='head', epochs=5, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0),
    dict(name='neck', epochs=5, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1),
    dict(name='full', epochs=90, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1,
         lr_mult=dict(backbone=1.0, neck=1.0, bbox_head=1.0)),
]
