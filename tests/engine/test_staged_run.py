"""Whole runs of a plan through mmengine's Runner: what is frozen, what changes, and what is refused."""
import copy
import re

import pytest
import torch
from mmdet.registry import HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.launch import has_accelerator
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.plan.freezing import digest
from tests.conftest import ROOT
from tests.support.mmdet_detectors import RETINANET, YOLOV3
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, TableMetric, differences, newest, run, staged_config, state_of

STAGES = [dict(HEAD, epochs=1), dict(NECK, epochs=1), dict(FULL, epochs=1)]
NO_VALIDATION = {'train_cfg.val_begin': 1000}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


@HOOKS.register_module(force=True)
class FirstWeightsHook(Hook):
    """Write the weights a run starts from."""

    def before_train(self, runner):
        torch.save(runner.model.state_dict(), f'{runner.work_dir}/first.pth')


def hashes(work_dir, epochs=3):
    """Name -> hash of every tensor at the start and after each epoch."""
    states = [torch.load(work_dir / 'first.pth')]
    states += [torch.load(work_dir / f'epoch_{epoch}.pth')['state_dict'] for epoch in range(1, epochs + 1)]
    return [{key: digest(value) for key, value in state.items()} for state in states]


def changed(before, after):
    return {key for key in before if before[key] != after[key]}


def test_after_each_stage_of_the_nano_model(data, tmp_path):
    """By hash of the checkpoints: every frozen tensor and statistic as before the stage, every trained one changed."""
    nano = Config.fromfile(ROOT / 'configs/mgdet_nano_staged.py').model
    cfg = staged_config(tmp_path, data, STAGES, custom_hooks=[dict(type='FirstWeightsHook')], **NO_VALIDATION)
    cfg.model = copy.deepcopy(nano)
    cfg.model.bbox_head.update(num_classes=3)
    cfg.model.bbox_head.loss.class_weights = None
    run(cfg, tmp_path / 'run')
    start, head, neck, full = hashes(tmp_path / 'run')
    assert changed(start, head) == {key for key in start if '.predict_convs.' in key} and len(start) == 402
    assert changed(head, neck) == {key for key in start if not key.startswith('backbone.')}
    assert changed(neck, full) == set(start)
    assert sum('running_' in key for key in changed(head, neck)) == 2 * 14  # statistics of what trains move


@pytest.mark.parametrize(('model', 'predict'), [(YOLOV3, ('convs_pred', )), (RETINANET, ('retina_cls', 'retina_reg'))])
def test_mmdets_own_detectors(data, tmp_path, model, predict):
    cfg = staged_config(tmp_path, data, STAGES, custom_hooks=[dict(type='FirstWeightsHook')], **NO_VALIDATION)
    cfg.model = Config(dict(model=copy.deepcopy(model))).model
    cfg.optim_wrapper.optimizer.eps = 1e-12  # some gradients of an untrained RetinaNet are below the recipe's 1e-7
    run(cfg, tmp_path / 'run')
    start, head, neck, full = hashes(tmp_path / 'run')
    assert {key.split('.')[1] for key in changed(start, head)} == set(predict)
    assert {key.split('.')[0] for key in changed(head, neck)} == {'neck', 'bbox_head'}
    stem = {key for key in start if re.match(r'backbone\.(conv1|bn1|layer1)\.', key)} if model is RETINANET else set()
    assert changed(neck, full) == set(start) - stem  # what the backbone freezes by itself stays


def test_a_frozen_tensor_that_changes_ends_the_run(data, tmp_path):
    """Another hook writes into the frozen backbone: the edge names the tensor."""
    class Meddler(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.model.backbone.conv1.bn.running_mean.add_(1e-3)

    cfg = staged_config(tmp_path, data, STAGES, **NO_VALIDATION)
    frozen = sum('.predict_convs.' not in name for name in MODELS.build(cfg.model).state_dict())
    with pytest.raises(UserError, match=rf'1 of {frozen} frozen tensors changed \(backbone.conv1.bn.running_mean\)'):
        run(cfg, tmp_path / 'run', hooks=[Meddler()])


def test_moments_live_on_across_an_edge(data, tmp_path):
    """Adam's step count of a predict convolution goes on counting; what thaws begins at its first."""
    cfg = staged_config(tmp_path, data, STAGES, **NO_VALIDATION)
    runner = run(cfg, tmp_path / 'run')
    steps = {name: int(runner.optim_wrapper.optimizer.state[parameter]['step'])
             for name, parameter in runner.model.named_parameters()}
    assert steps['bbox_head.predict_convs.0.weight'] == 6 and steps['neck.up_convs.0.conv.weight'] == 4
    assert steps['backbone.conv1.conv.weight'] == 2


def test_a_batch_size_a_stage(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD, dict(NECK, batch_size=2, lr=1e-4), dict(FULL, batch_size=8)],
                        **NO_VALIDATION)
    runner = run(cfg, tmp_path / 'run')
    assert runner.iter == 2 * 2 + 2 * 4 + 2 * 1 == runner.max_iters
    record = newest(tmp_path / 'run')['mgdet']
    assert (record['first_epoch'], record['first_iter']) == (4, 12)


def test_mixed_precision(data, tmp_path):
    """mmengine's wrapper, its loss scaler where there is one and a resume in the middle."""
    cfg = staged_config(tmp_path, data, STAGES, custom_hooks=[dict(type='CheckpointHook', by_epoch=False, interval=1)],
                        **{**NO_VALIDATION, 'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'})
    runner = run(cfg, tmp_path / 'whole')
    run(cfg, tmp_path / 'stopped', kill=('iter', 3))
    run(cfg, tmp_path / 'stopped', resume=True)
    kernel = runner.model.get_parameter('neck.blocks.0.conv2.conv.weight')
    assert kernel.is_contiguous(memory_format=torch.channels_last) != has_accelerator()
    assert ('loss_scaler' in newest(tmp_path / 'whole')['optimizer']) == has_accelerator()
    assert differences(state_of(newest(tmp_path / 'stopped')), state_of(newest(tmp_path / 'whole'))) == []


def test_custom_hooks_of_a_users_config_do_not_lose_the_plan(data, tmp_path):
    """It is a default hook: naming custom_hooks anew, as everyone does for EMA, must not leave everything thawed."""
    cfg = staged_config(tmp_path, data, STAGES[:1], custom_hooks=[dict(type='EMAHook')], **NO_VALIDATION)
    runner = run(cfg, tmp_path / 'run')
    assert [name for name, each in runner.model.named_parameters() if each.requires_grad] == [
        f'bbox_head.predict_convs.{level}.{kind}' for level in range(3) for kind in ('weight', 'bias')]


def test_without_the_hook_the_loop_refuses(data, tmp_path):
    cfg = staged_config(tmp_path, data, STAGES, **NO_VALIDATION)
    cfg.default_hooks.pop('staged_unfreeze')
    with pytest.raises(UserError, match='found no StagedUnfreezeHook, so nothing would be frozen'):
        run(cfg, tmp_path / 'run')


def test_a_hook_with_stages_takes_the_default_ones_place(data, tmp_path):
    cfg = staged_config(tmp_path, data, STAGES[:1], **NO_VALIDATION)
    cfg.custom_hooks = [dict(type='StagedUnfreezeHook', stages=cfg.stages)]
    runner = run(cfg, tmp_path / 'run')
    assert sum(type(hook).__name__ == 'StagedUnfreezeHook' for hook in runner.hooks) == 1
    cfg.custom_hooks = [dict(type='StagedUnfreezeHook')]
    with pytest.raises(UserError, match='needs one StagedUnfreezeHook, found 2'):
        run(cfg, tmp_path / 'two')


@pytest.mark.parametrize(('start', 'highest'), [('full', 1e-4), ('nothing', 4e-4)])
def test_scaled_by_the_batch_and_held_to_the_limit(data, tmp_path, start, highest):
    """mmengine's auto_scale_lr at four times the batch the rates are for."""
    cfg = staged_config(tmp_path, data, [dict(HEAD, warmup_epochs=0, schedule='constant')], **NO_VALIDATION)
    cfg.plan, cfg.auto_scale_lr = dict(start=start), dict(enable=True, base_batch_size=1)
    runner = run(cfg, tmp_path / 'run')
    rates = [group['lr'] for group in runner.optim_wrapper.optimizer.param_groups]
    assert rates == pytest.approx([highest] * 3)


def test_stages_may_be_given_to_the_hook(data, tmp_path):
    cfg = staged_config(tmp_path, data, STAGES[:1], **NO_VALIDATION)
    stages = cfg.pop('stages')
    cfg.default_hooks.staged_unfreeze.stages = stages
    assert run(cfg, tmp_path / 'run').epoch == 1
    cfg.stages = [dict(STAGES[0], lr=5e-5)]
    with pytest.raises(UserError, match='has stages, and StagedUnfreezeHook has others'):
        run(cfg, tmp_path / 'other')


def test_mmengines_own_loop_cannot_follow_a_plan(data, tmp_path):
    """Augmentation, resume within an epoch and steps without a trace need our loop, so a plan is refused without it."""
    cfg = staged_config(tmp_path, data, STAGES[:1])
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_begin=1000)
    cfg.optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4))
    cfg.param_scheduler = None
    with pytest.raises(UserError, match="has a EpochBasedTrainLoop; set train_cfg=dict\\(type='StagedTrainLoop'\\)"):
        run(cfg, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_a_broken_rule_stops_the_run_before_its_first_step(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD, FULL])
    cfg.plan = dict(start='full')
    with pytest.raises(UserError, match='skipped-level'):
        run(cfg, tmp_path / 'run')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_stage_3_on_the_weights_of_stage_1_is_refused(data, tmp_path):
    """Stage configs are runs of their own: the checkpoint tells what its weights went through."""
    run(staged_config(tmp_path, data, STAGES[:1], **NO_VALIDATION), tmp_path / 'one')
    cfg = staged_config(tmp_path, data, STAGES[2:], **NO_VALIDATION)
    cfg.load_from = str(tmp_path / 'one' / 'epoch_1.pth')
    with pytest.raises(UserError, match="come from stage 'head', in which only the head trained, and stage 'full'"):
        run(cfg, tmp_path / 'three')
    two = staged_config(tmp_path, data, STAGES[1:2], **NO_VALIDATION)
    two.load_from = cfg.load_from
    run(two, tmp_path / 'two')
    cfg.load_from = str(tmp_path / 'two' / 'epoch_1.pth')
    assert run(cfg, tmp_path / 'three_after_two').epoch == 1
    assert [entry['name'] for entry in newest(tmp_path / 'three_after_two')['mgdet']['history']] == ['head', 'neck']


@pytest.mark.parametrize(('stages', 'options', 'message'), [
    ([HEAD], {'param_scheduler': [dict(type='LinearLR', start_factor=0.1)]}, r"param_scheduler is \['LinearLR'\]"),
    ([HEAD], {'param_scheduler': None}, r'param_scheduler is \[\]'),
    ([dict(HEAD, until=dict(metric='m', patience=1))], {'train_cfg.val_interval': 5}, 'see no validation'),
    ([dict(HEAD, probs=dict(CutOut=0.2))], {}, "stage 'head' gives a probability to CutOut, and no step")])
def test_what_could_never_happen_is_refused_before_anything_is_built(data, tmp_path, stages, options, message):
    cfg = staged_config(tmp_path, data, stages)
    cfg.merge_from_dict(options)
    with pytest.raises(UserError, match=message):
        check_weights(cfg)


def test_restart_without_a_moving_average_is_refused(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD, dict(NECK, restart_ema=True)])
    with pytest.raises(UserError, match='has restart_ema, and there is no moving average'):
        run(cfg, tmp_path / 'run')


def test_rates_that_would_not_be_used_are_refused(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD])
    cfg.param_scheduler = None
    with pytest.raises(UserError, match='the rates of the stages would not be used'):
        run(cfg, tmp_path / 'run')


def test_scaled_rates_follow_a_stages_own_batch(data, tmp_path):
    stages = [dict(HEAD, warmup_epochs=0, schedule='constant', batch_size=2)]
    cfg = staged_config(tmp_path, data, stages, **NO_VALIDATION)
    cfg.plan, cfg.auto_scale_lr = dict(start='nothing'), dict(enable=True, base_batch_size=4)
    runner = run(cfg, tmp_path / 'run')
    assert runner.optim_wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(5e-5)  # of 1e-4 for four images


@METRICS.register_module(force=True)
class NothingMetric(TableMetric):
    """No figure in the first epoch, as mmdet's metrics where nothing was detected."""

    def compute_metrics(self, results):
        found = super().compute_metrics(results)
        return found if found['value'] else {}


def test_a_validation_in_which_nothing_is_detected(data, tmp_path):
    """It has losses and no metric: the run goes on, and the best checkpoint is the other epoch's."""
    cfg = staged_config(tmp_path, data, [HEAD])
    cfg.val_evaluator = dict(type='NothingMetric', values=(0.0, 0.3))
    run(cfg, tmp_path / 'run')
    assert torch.load(tmp_path / 'run/best.pth', weights_only=True)['meta']['epoch'] == 2


def test_a_misspelt_metric_is_still_an_error(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD])
    cfg.default_hooks.checkpoint.save_best = 'table/valeu'
    with pytest.raises(UserError, match=r'table/valeu .* it gives table/value'):
        run(cfg, tmp_path / 'run')
