"""A step with a number that is not finite leaves no trace: weights, statistics, averages and moments."""
import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mgdet_plugin.engine.optim.step_guard import (
    GRADIENT,
    IMAGE,
    LABEL,
    LOSS,
    CheckedOptim,
    Fault,
    are_finite,
    bad_input,
)
from tests.support.guarded_run import EMA, NAN, FaultHook, Recorder, guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, differences, run

FAULTS = {1: 'loss', 3: 'gradient', 5: 'nan image', 7: 'label', 8: 'inf image'}
KINDS = {'nan image': IMAGE, 'inf image': IMAGE}
ONE = dict(FULL, epochs=1, warmup_epochs=0, mosaic_prob=0, mixup_prob=0)
NO_VALIDATION = {'train_cfg.val_begin': 1000}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def run_with(cfg, work_dir, faults, **kwargs):
    recorder = Recorder()
    runner = run(cfg, work_dir, hooks=[FaultHook(faults), recorder], **kwargs)
    return runner, recorder


def bad_batches(work_dir):
    return [json.loads(line) for line in (work_dir / 'bad_batches.jsonl').read_text().splitlines()]


def changed(recorder, iteration):
    """Parts of the state that an iteration changed."""
    before, after = recorder.states[iteration:iteration + 2]
    return {each.split('/')[1].split('[')[0] for each in differences(before, after)}


@pytest.mark.parametrize(('update_buffers', 'optimizer'), [
    (True, dict(type='SGD', momentum=0.9)), (False, dict(type='Adam', eps=1e-7))])
def test_a_bad_step_leaves_no_trace(data, tmp_path, update_buffers, optimizer):
    """Every kind of fault in one run of ten steps; the iterations between and after them train."""
    cfg = guarded_config(tmp_path, data, [dict(ONE, epochs=2)], **NO_VALIDATION)
    cfg.train_dataloader.update(batch_size=2)
    cfg.train_dataloader.dataset.indices = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]  # five steps an epoch
    cfg.optim_wrapper.optimizer = optimizer
    cfg.custom_hooks = [dict(EMA, update_buffers=update_buffers)]
    runner, recorder = run_with(cfg, tmp_path / 'run', FAULTS)
    assert (runner.epoch, runner.iter) == (2, 10)
    for iteration in range(10):
        everything = {'weights', 'buffers', 'average', 'optimizer'}
        assert changed(recorder, iteration) == (set() if iteration in FAULTS else everything), iteration
    before, after = recorder.states[9:11]
    moved = differences(before['buffers'], after['buffers'])
    tracked = [key for key in before['buffers'] if key.endswith(('running_mean', 'running_var', 'num_batches_tracked'))]
    assert len(tracked) > 50 and {f'/{key}' for key in tracked} == set(moved)
    assert int(after['average'][0]['steps']) == 10 - len(FAULTS)
    assert all(bool(value.isfinite().all()) for each in recorder.states for part in (
        each['weights'], each['buffers'], *each['average']) for value in part.values())

    lines = bad_batches(tmp_path / 'run')
    assert [(line['iter'] - 1, line['kind']) for line in lines] == [
        (iteration, KINDS.get(kind, kind)) for iteration, kind in FAULTS.items()]
    assert [line['files'] for line in lines] == [recorder.files[iteration] for iteration in FAULTS]
    assert [line['names'] for line in lines if line['kind'] in (IMAGE, LABEL)] == [
        recorder.files[iteration][:1] for iteration in (5, 7, 8)]
    assert lines[0]['names'] == ['loss', 'loss_obj'] and lines[1]['names'] == ['bbox_head.predict_convs.1.weight']
    record = guard_json(tmp_path / 'run')
    assert record['bad_steps'] == len(FAULTS) and record['ended'] == 'plan'
    assert [event['actions'] for event in record['events'] if event['kind'] == 'nan'] == [['skip']] * len(FAULTS)
    scalars = runner.message_hub.log_scalars
    assert len(scalars['train/loss'].data[0]) == 10 - len(FAULTS)
    assert all(math.isfinite(value) for each in scalars.values() for value in each.data[0])


def test_a_bad_iteration_takes_its_group_with_it(data, tmp_path):
    """Two iterations a step: the groups whose first or second iteration is bad make none, the last one steps."""
    cfg = guarded_config(tmp_path, data, [ONE], **NO_VALIDATION,
                         **{'train_dataloader.batch_size': 1, 'optim_wrapper.accumulative_counts': 2})
    cfg.custom_hooks = [dict(EMA)]
    waiting = []
    watcher = Recorder()
    watcher.before_train_iter = lambda runner, **_: waiting.append(any(
        each.grad is not None and bool(each.grad.any()) for each in runner.model.parameters()))
    recorder = Recorder()
    run(cfg, tmp_path / 'run', hooks=[FaultHook({2: 'loss', 5: 'nan image'}), recorder, watcher])
    assert [iteration for iteration in range(8) if 'weights' in changed(recorder, iteration)] == [1, 7]
    assert [iteration for iteration in range(8) if 'optimizer' in changed(recorder, iteration)] == [1, 7]
    assert [iteration for iteration in range(8) if 'buffers' not in changed(recorder, iteration)] == [2, 5]
    assert waiting == [False, True, False, False, False, True, False, True]  # nothing is left of a dropped group


def test_a_bad_gradient_of_a_group(data, tmp_path):
    """A gradient that is not finite is seen at the step, wherever in the group it came from."""
    cfg = guarded_config(tmp_path, data, [ONE], **NO_VALIDATION,
                         **{'train_dataloader.batch_size': 1, 'optim_wrapper.accumulative_counts': 4})
    _, recorder = run_with(cfg, tmp_path / 'run', {1: 'gradient'})
    assert [iteration for iteration in range(8) if 'weights' in changed(recorder, iteration)] == [7]
    assert [line['iter'] for line in bad_batches(tmp_path / 'run')] == [4]


def test_mixed_precision(data, tmp_path, monkeypatch):
    """mmengine's AMP wrapper with bfloat16; without CUDA its loss scaler is off."""
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    cfg = guarded_config(tmp_path, data, [ONE], **NO_VALIDATION,
                         **{'train_dataloader.batch_size': 2, 'optim_wrapper.type': 'AmpOptimWrapper',
                            'optim_wrapper.dtype': 'bfloat16'})
    _, recorder = run_with(cfg, tmp_path / 'run', {1: 'loss', 2: 'gradient'})
    assert [changed(recorder, iteration) for iteration in range(4)] == [
        {'weights', 'buffers', 'optimizer'}, set(), set(), {'weights', 'buffers', 'optimizer'}]


# ---- a loss scaler, of which there is none without CUDA

class Scaler:
    """A loss scaler of a given scale."""

    def __init__(self, scale):
        self.scale = scale

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize(('scale', 'faults'), [(1024.0, [False] * 19 + [True]), (1.0, [True])])
def test_an_overflow_of_a_scaled_loss_is_no_fault(monkeypatch, scale, faults):
    """The scaler skips the step and lowers its scale; where that does not help it is a fault."""
    class Amp(SimpleNamespace):
        pass

    monkeypatch.setattr('mgdet_plugin.engine.optim.step_guard.AmpOptimWrapper', Amp)
    model = nn.Linear(2, 1)
    optim = CheckedOptim(Amp(loss_scaler=Scaler(scale), param_groups=[dict(params=list(model.parameters()))]), model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float('inf'))
    assert [optim._gradient_fault() is not None for _ in faults] == faults
    assert optim._gradient_fault().names == ('weight', 'bias') if faults[0] else True
    model.weight.grad.zero_()
    model.bias.grad.zero_()
    assert optim._gradient_fault() is None and optim._overflows == 0


# ---- the parts

def test_are_finite():
    fine = torch.ones(3)
    assert are_finite([]) and are_finite([None, torch.zeros(0), fine, torch.zeros((), dtype=torch.float64)])
    assert are_finite([torch.full((2, ), 3e38)])  # their sum of squares would not be
    for bad in (NAN, float('inf'), -float('inf')):
        assert not are_finite([fine, torch.tensor([[1.0, bad]])])
    assert not are_finite([torch.tensor([NAN], dtype=torch.bfloat16), torch.tensor([NAN], dtype=torch.float16)])


def sample(path, boxes=((0, 0, 4, 4), ), **fields):
    made = DetDataSample(metainfo=dict(img_path=path))
    made.gt_instances = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), **fields)
    return made


def test_bad_input():
    image, broken = torch.zeros(3, 4, 4), torch.full((3, 4, 4), NAN)
    samples = [sample('a.png'), sample('b.png'), sample('c.png')]
    assert bad_input(dict(inputs=[image.byte()] * 3, data_samples=samples)) is None
    assert bad_input(dict(inputs=[image, broken, broken], data_samples=samples)) == Fault(IMAGE, ('b.png', 'c.png'))
    assert bad_input(dict(inputs=torch.stack([broken, image, image]), data_samples=samples)) == Fault(
        IMAGE, ('a.png', ))
    wrong = [samples[0], sample('d.png', [[0, 0, 1, 1], [0, NAN, 3, 3]]), sample('e.png', [[0, 0, float('inf'), 1]])]
    assert bad_input(dict(inputs=[image] * 3, data_samples=wrong)) == Fault(LABEL, ('d.png', 'e.png'))
    assert bad_input(dict(inputs=[broken, image, image], data_samples=wrong)).kind == IMAGE
    assert bad_input(dict(inputs=[image], data_samples=[sample('f.png', [])])) is None  # an image without objects
    assert bad_input(dict(inputs=[image, broken])) == Fault(IMAGE, ())
    assert bad_input([image, broken]) is None and bad_input(dict()) is None  # forms that mmdet does not have


@pytest.mark.parametrize(('own', 'worst', 'agreed'), [
    (None, 0, None), (Fault(LOSS, ('loss_obj', )), 3, Fault(LOSS, ('loss_obj', ))),
    (None, 1, Fault(IMAGE)), (None, 2, Fault(LABEL)), (None, 3, Fault(LOSS)), (None, 4, Fault(GRADIENT))])
def test_agree(monkeypatch, own, worst, agreed):
    """What another process found is this one's fault, too; real processes are in ``test_ddp_guard.py``."""
    model = nn.Linear(1, 1)
    optim = CheckedOptim(SimpleNamespace(), model)
    assert optim.agree(own) == own  # alone
    monkeypatch.setattr('mgdet_plugin.engine.optim.step_guard.is_distributed', lambda: True)
    monkeypatch.setattr('mgdet_plugin.engine.optim.step_guard.all_reduce', lambda seen, op: seen.fill_(worst))
    assert optim.agree(own) == agreed
