# The small model from nothing on the embedded source domain, trained to the end: what the staged configs of the target
# domain fine-tune. Under an hour on two cores, a few minutes on a GPU. Loss scales are those of the short run: at
# model5's, boxes and objectness hold the class gradient back.
_base_ = 'mgdet_nano_source.py'
train_dataloader = dict(batch_size=32, num_workers=2)
stages = [
    dict(name='all', epochs=120, freeze_level=0, lr=3e-3, warmup_epochs=3, warmup_ratio=0.02, eta_min_ratio=0.01,
         mosaic_prob=0.3)
]
train_cfg = dict(val_interval=10)
# The average of the weights over about the last 500 iterations is what is evaluated and saved.
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.01, interval=5, gamma=200, update_buffers=True)
]
default_hooks = dict(
    logger=dict(interval=19),
    checkpoint=dict(interval=10, max_keep_ckpts=1),
    drift_guard=dict(divergence='warn', random_start=False))  # there are no loaded weights to go back to
