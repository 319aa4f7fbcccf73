# The small model's stage 1: weights from the source domain, only the predict convolutions train on the target domain.
_base_ = [
    '_base_/models/multigrid_nano.py', '_base_/datasets/digits_target.py', '_base_/schedules/staged.py',
    '_base_/default_runtime.py'
]
load_from = 'weights/digits_source.pth'  # imported from the Keras file there; --demo does it
train_dataloader = dict(batch_size=4)  # 50 steps an epoch of the 200 images
plan = dict(start='full')
stages = [dict(name='head', epochs=5, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0)]
val_cfg = dict(others=dict(old={{_base_.old_domain}}))  # the source domain's losses and AP are followed as old/...
default_hooks = dict(logger=dict(interval=25))
randomness = dict(seed=0)
