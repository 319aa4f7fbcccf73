"""L2-SP: its gradient is the explicit penalty's, it holds weights near their start, and it is there after a resume."""
from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.hooks.l2_sp_hook import L2SPHook, anchors, penalties, pull, strength_of
from mgdet_plugin.keep.start_weights import START, distances, save_start
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, differences, newest, run, staged_config, state_of

STRENGTH = {'backbone': 0.5, 'backbone.0.bias': 0.0, 'bbox_head': 2.0}
PULL = dict(type='L2SPHook', strength=3.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.neck = nn.Linear(4, 4)
        self.bbox_head = nn.Linear(4, 2)

    def forward(self, x):
        return self.bbox_head(self.neck(self.backbone(x)))


@pytest.fixture
def moved():
    """A model, where it started, and a batch."""
    torch.manual_seed(0)
    model = Net()
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each))
    return model, start, torch.randn(8, 3)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def explicit(model, start, strength):
    """The penalty written out, for autograd."""
    return sum(strength_of(name, strength) / 2 * (each - start[name]).square().sum()
               for name, each in model.named_parameters())


@pytest.mark.parametrize('strength', [0.7, STRENGTH])
def test_gradient_is_that_of_the_penalty(moved, strength):
    model, start, batch = moved
    (model(batch).square().sum() + explicit(model, start, strength)).backward()
    wanted = [each.grad.clone() for each in model.parameters()]
    model.zero_grad()
    model(batch).square().sum().backward()
    without = [each.grad.clone() for each in model.parameters()]
    pull(anchors(model, start, strength))
    for each, theirs in zip(model.parameters(), wanted):
        torch.testing.assert_close(each.grad, theirs, rtol=1e-6, atol=1e-6)
    assert any((one - other).abs().max() > 0.1 for one, other in zip(wanted, without))
    with torch.no_grad():
        value = float(explicit(model, start, strength))
    assert sum(penalties(anchors(model, start, strength)).values()) == pytest.approx(value)


def test_frozen_and_unmatched_are_left_alone(moved):
    model, start, batch = moved
    model.neck.requires_grad_(False)
    model(batch).square().sum().backward()
    model.bbox_head.bias.grad = None
    before = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    groups = anchors(model, start, {'neck': 9.0, 'bbox_head': 1.0})
    pull(groups)
    now = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert [name for name in before if not torch.equal(before[name], now[name])] == ['bbox_head.weight']
    assert now.keys() == before.keys()
    assert penalties(groups)['neck'] == 0.0 < penalties(groups)['bbox_head']


class Loop:
    """What of a runner the hook looks at."""

    def __init__(self, model, wrapper, work_dir):
        self.model, self.optim_wrapper, self.work_dir, self.iter, self.hooks = model, wrapper, str(work_dir), 0, []
        self.train_dataloader = type('Loader', (), dict(dataset=None))


def stepped(moved, work_dir, wrapper, strength=0.7, times=1):
    """Weights after a step of SGD of rate 1 at which nothing but the pull is counted twice if it is added twice."""
    model, start, batch = copy.deepcopy(moved)
    wrapper = wrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    now = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():  # the hook takes the weights it finds
        for name, each in model.named_parameters():
            each.copy_(start[name])
    hook = L2SPHook(strength)
    hook.before_train(Loop(model, wrapper, work_dir))
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.copy_(now[name])
    for part in batch.chunk(times):
        with wrapper.optim_context(model):
            loss = model(part).square().mean()
        wrapper.update_params(loss)
    hook.after_train(None)
    return model, now, start


def loss_gradients(model, now, parts):
    """Gradients of the mean of the parts' losses at earlier weights."""
    model = copy.deepcopy(model)
    model.load_state_dict(now, strict=False)
    model.zero_grad()
    for part in parts:
        (model(part).square().mean() / len(parts)).backward()
    return {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.parametrize('times', [1, 4])
def test_added_once_a_step(moved, tmp_path, times):
    """Four accumulated batches: w - rate * (mean gradient + strength * (w - w_start)), the second term once."""
    model, now, start = stepped(moved, tmp_path, lambda optimizer: OptimWrapper(
        optimizer, accumulative_counts=times), times=times)
    gradients = loss_gradients(model, now, moved[2].chunk(times))
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.data, now[name] - gradients[name] - 0.7 * (now[name] - start[name]),
                                   rtol=1e-5, atol=1e-5)


def test_clip_does_not_hold_the_pull(moved, tmp_path):
    """Clipped to nothing, the loss moves nothing, and the step is the pull alone."""
    model, now, start = stepped(moved, tmp_path, lambda optimizer: OptimWrapper(
        optimizer, clip_grad=dict(max_norm=1e-9)))
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.data, now[name] - 0.7 * (now[name] - start[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('clip', [None, dict(max_norm=1e9)])
@pytest.mark.parametrize('fused', [False, True])
def test_gradients_scaled_for_mixed_precision(moved, fused, clip):
    """The loss is scaled by 1,024 before the backward pass, and a fused optimizer takes it out in its own step."""
    model, start, batch = moved
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    optimizer.register_step_pre_hook(holding(anchors(model, start, 0.7))._pull)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    now = {name: each.detach().clone() for name, each in model.named_parameters()}
    scaler.scale(model(batch).square().mean()).backward()
    if clip:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    gradients = loss_gradients(model, now, [batch])
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.data, now[name] - gradients[name] - 0.7 * (now[name] - start[name]),
                                   rtol=1e-5, atol=1e-5)


def holding(groups):
    hook = L2SPHook(0.7)
    hook.anchors = groups
    return hook


def test_a_step_skipped_for_infinite_gradients_has_no_pull(moved):
    model, start, batch = moved
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.register_step_pre_hook(holding(anchors(model, start, 0.7))._pull)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    now = copy.deepcopy(model.state_dict())
    scaler.scale(model(batch).mean() * float('inf')).backward()
    scaler.step(optimizer)
    assert all(torch.equal(each, now[name]) for name, each in model.named_parameters())


def test_amp_wrapper(moved, tmp_path, monkeypatch):
    """mmengine's wrapper of mixed precision, its scaler on the CPU."""
    def wrapper(optimizer):
        monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
        made = AmpOptimWrapper(optimizer=optimizer, dtype='bfloat16', clip_grad=dict(max_norm=1e-9))
        made.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
        return made

    model, now, start = stepped(moved, tmp_path, wrapper)
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.data, now[name] - 0.7 * (now[name] - start[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('strength', [-1, float('nan'), float('inf'), 'much', True, None, {'neck': -0.1}, {}])
def test_refuses_strengths(strength):
    with pytest.raises(UserError, match=r'L2SPHook\.strength'):
        L2SPHook(strength)


def test_refuses_a_pattern_that_matches_nothing(moved, tmp_path):
    model = moved[0]
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(UserError, match=r"L2SPHook\.strength names 'nekc'.*neck"):
        L2SPHook({'nekc': 1.0}).before_train(Loop(model, wrapper, tmp_path))


# ---- whole runs

@HOOKS.register_module(force=True)
class DistanceHook(Hook):
    """Remember how far each part has moved by the end."""
    priority = 100

    def after_train(self, runner):
        state, _ = load_checkpoint(Path(runner.work_dir) / START)
        runner.moved = distances(runner.model, state)


@HOOKS.register_module(force=True)
class SaveStartHook(Hook):
    """Write the start weights and do nothing with them."""

    def before_train(self, runner):
        save_start(runner)


def moved_by_a_run(folder, data, hook):
    """Distances after 60 steps of SGD at a high rate, the backbone frozen."""
    folder.mkdir()
    stage = dict(name='long', epochs=30, freeze=['backbone'], lr=1e-2, warmup_epochs=0, schedule='constant')
    cfg = staged_config(folder, data, [stage], **{'train_cfg.val_begin': 100})
    cfg.plan = dict(start='nothing')
    cfg.optim_wrapper = dict(type='OptimWrapper', constructor='StagedOptimWrapperConstructor',
                             optimizer=dict(type='SGD'), clip_grad=dict(max_norm=10.0))
    cfg.default_hooks.checkpoint.update(interval=100)
    return run(cfg, folder / 'run', hooks=[hook, DistanceHook()]).moved


def test_a_long_run_stays_near_its_start(data, tmp_path):
    """Pulled, neck and head stay where without the pull they leave; the frozen backbone stays bit for bit."""
    free = moved_by_a_run(tmp_path / 'free', data, SaveStartHook())
    held = moved_by_a_run(tmp_path / 'held', data, L2SPHook(30.0))
    assert free['backbone'] == held['backbone'] == 0.0
    for part in ('neck', 'bbox_head'):
        assert 0 < held[part] < free[part] / 4, (free, held)


@pytest.mark.parametrize('kill', [('iter', 3), ('val', 2), ('epoch', 4)])
def test_resumed_equals_uninterrupted(data, tmp_path, kill):
    """Within a stage, on an edge, in the last stage; and the pull counts, or resuming without it were equal too."""
    cfg = staged_config(tmp_path, data, [HEAD, NECK, FULL], custom_hooks=[
        PULL, dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=-1)])
    run(cfg, tmp_path / 'whole')
    whole = newest(tmp_path / 'whole')
    run(cfg, tmp_path / 'stopped', kill=kill)
    shutil.copytree(tmp_path / 'stopped', tmp_path / 'without')
    run(cfg, tmp_path / 'stopped', resume=True)
    resumed = newest(tmp_path / 'stopped')
    assert differences(state_of(resumed), state_of(whole)) == []
    logged = [each['message_hub']['log_scalars'] for each in (whole, resumed)]
    for key in ('train/l2_sp', 'train/l2_sp_neck'):
        assert differences(logged[1][key], logged[0][key]) == [] and logged[0][key]['log_history'][-1] > 0

    def without(cfg):
        cfg.custom_hooks = cfg.custom_hooks[1:]

    run(cfg, tmp_path / 'without', resume=True, change=without)
    assert differences(state_of(newest(tmp_path / 'without')), state_of(whole))


def test_resumed_without_its_start_weights(data, tmp_path):
    cfg = staged_config(tmp_path, data, [HEAD], custom_hooks=[PULL])
    run(cfg, tmp_path / 'run', kill=('val', 1))
    (tmp_path / 'run' / START).unlink()
    with pytest.raises(UserError, match=r'start\.pth is not there'):
        run(cfg, tmp_path / 'run', resume=True)


def test_a_new_run_in_a_used_folder_starts_from_its_own_weights(data, tmp_path):
    cfg = staged_config(tmp_path, data, [dict(HEAD, epochs=1)], custom_hooks=[PULL])
    run(cfg, tmp_path / 'run')
    first, content = load_checkpoint(tmp_path / 'run' / START)
    assert content['meta']['run'] == newest(tmp_path / 'run')['mgdet']['run']
    run(cfg, tmp_path / 'run', change=lambda cfg: cfg.update(randomness=dict(seed=5)))
    second, content = load_checkpoint(tmp_path / 'run' / START)
    assert content['meta']['run'] == newest(tmp_path / 'run')['mgdet']['run']
    assert differences(dict(first), dict(second))
