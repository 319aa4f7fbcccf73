# Everything about time follows from the config's `stages`: length, rates, what is frozen, augmentation. Adam as the
# weights were trained: eps 1e-7, no weight decay. Rates are those of the stages; by default each stage warms up for 3
# epochs (at most three fifths of it) and ends with a cosine to 1e-7.
train_cfg = dict(type='StagedTrainLoop', val_interval=1)
val_cfg = dict(type='LossValLoop')  # metrics and every loss term, val/loss, val/loss_obj, ..., from one pass
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='StagedOptimWrapperConstructor',
    optimizer=dict(type='Adam', eps=1e-7, weight_decay=0))
param_scheduler = [dict(type='StagedLR')]
# With --auto-scale-lr: images a step / 48, and with full weights never above 1e-4.
auto_scale_lr = dict(enable=False, base_batch_size=48)
