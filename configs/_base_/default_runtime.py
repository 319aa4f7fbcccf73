custom_imports = dict(
    imports=['mgdet_plugin.models', 'mgdet_plugin.datasets', 'mgdet_plugin.engine', 'mgdet_plugin.guard'],
    allow_failed_imports=False)
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # the best one, by the evaluator's mean AP, also as work_dir/best.pth, what the next stage loads
    checkpoint=dict(type='WholeCheckpointHook', interval=1, save_best='auto', max_keep_ckpts=3),
    class_weights=dict(type='ClassWeightsHook'),
    staged_unfreeze=dict(type='StagedUnfreezeHook'),  # carries out the config's `stages`
    drift_guard=dict(type='DriftGuardHook'),  # holds the losses against those of the loaded weights
    results=dict(type='ResultsHook'),  # results.csv, a row a validation
    random_state=dict(type='RandomStateHook'),  # in every checkpoint, so that a resumed run is the same run
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600))  # seconds until a process that does not answer ends the run

# TensorBoard where it is installed: tensorboard --logdir WORK_DIR
vis_backends = [dict(type='LocalVisBackend'), dict(type='OptionalTensorboardVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
# Means over 50 iterations of training; mmengine's own pattern would average validation losses over 50 epochs, too.
log_processor = dict(
    type='LogProcessor', window_size=50, by_epoch=True, mean_pattern=r'^[^/]*(loss|time|grad_norm)[^/]*$')
log_level = 'INFO'
tta_model = dict(type='MultiGridTTA')  # of `test.py --tta`; the views are mmdet's flips where there is no tta_pipeline
load_from = None
resume = False
# A stage changes what is trained, so under DDP some parameters have no gradient.
find_unused_parameters = True
