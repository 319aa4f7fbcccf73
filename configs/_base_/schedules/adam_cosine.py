# Adam as the weights were trained: eps 1e-7, no weight decay, cosine to 1e-7 after 3 warmup epochs.
# A stage sets max_epochs, lr and the two schedulers' ends.
lr = 1e-4
max_epochs = 5
warmup_epochs = 3
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=lr, eps=1e-7, weight_decay=0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-7 / lr,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        T_max=max_epochs - warmup_epochs,
        convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=48)
