"""Several processes without a GPU: they train as one, and where there is a GPU nothing is changed."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mgdet_plugin.compat import launch as launch_compat
from tests.conftest import ROOT
from tests.support.toy_launch import train

SCRIPT = ROOT / 'tests/support/toy_launch.py'
needs_no_gpu = pytest.mark.skipif(launch_compat.has_accelerator(), reason='for machines without a GPU')


def free_port() -> int:
    """Return a port nothing listens at."""
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def run(arguments: list[object], **environment: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **{k: str(v) for k, v in environment.items()}}
    return subprocess.run([sys.executable, '-W', 'ignore', *map(str, arguments)], env=env, capture_output=True,
                          text=True, check=False, timeout=120)


def weight(folder: Path) -> torch.Tensor:
    """Return what was trained."""
    return torch.load(folder / 'epoch_2.pth')['state_dict']['weight']


@pytest.fixture(scope='module')
def alone(tmp_path_factory) -> torch.Tensor:
    """Return the weight one process trains on batches of all four points."""
    folder = tmp_path_factory.mktemp('alone')
    train(folder, 'none', 4)
    return weight(folder)


@needs_no_gpu
def test_two_processes_train_as_one(alone, tmp_path):
    done = run(['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}', SCRIPT, tmp_path,
                'pytorch', 2])
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f'rank_{rank}').read_text() for rank in (0, 1)] == ['MMDistributedDataParallel True'] * 2
    assert done.stderr.count('exchange gradients by gloo instead of nccl') == 1
    assert weight(tmp_path) != 0
    torch.testing.assert_close(weight(tmp_path), alone, rtol=0, atol=1e-7)


@needs_no_gpu
def test_a_slurm_task_trains_without_a_gpu(alone, tmp_path):
    done = run([SCRIPT, tmp_path, 'slurm', 4], SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_NTASKS=1, SLURM_NODELIST='here',
               MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'rank_0').read_text() == 'MMDistributedDataParallel True'
    torch.testing.assert_close(weight(tmp_path), alone, rtol=0, atol=1e-7)


def fake_dist_utils() -> SimpleNamespace:
    """Return mmengine's module with functions that note what they are called with."""
    calls: list[tuple] = []
    module = SimpleNamespace(calls=calls)
    for name in launch_compat.LAUNCHERS:
        setattr(module, name, lambda backend, **kwargs: calls.append((backend, kwargs, torch.cuda.set_device)))
    launch_compat.patch_dist_utils(module)
    return module


def fake_wrapper() -> SimpleNamespace:
    """Return mmengine's module with a wrapper that notes what it is made with."""

    class Wrapper:
        def __init__(self, module: object, **kwargs: object) -> None:
            self.kwargs = kwargs

    module = SimpleNamespace(MMDistributedDataParallel=Wrapper)
    launch_compat.patch_model_wrapper(module)
    return module


@pytest.mark.parametrize('name', launch_compat.LAUNCHERS)
def test_with_an_accelerator_nothing_is_changed(name, monkeypatch):
    monkeypatch.setattr(launch_compat, 'has_accelerator', lambda: True)
    module, set_device = fake_dist_utils(), torch.cuda.set_device
    getattr(module, name)('nccl', init_backend='torch', timeout=3)
    assert module.calls == [('nccl', {'init_backend': 'torch', 'timeout': 3}, set_device)]
    wrapped = fake_wrapper().MMDistributedDataParallel(module=None, device_ids=[1], broadcast_buffers=False)
    assert wrapped.kwargs == {'device_ids': [1], 'broadcast_buffers': False}


def test_without_one_only_the_device_is_left_out(monkeypatch):
    monkeypatch.setattr(launch_compat, 'has_accelerator', lambda: False)
    module, set_device = fake_dist_utils(), torch.cuda.set_device
    module._init_dist_pytorch('gloo', timeout=3)
    (backend, kwargs, ignored), = module.calls
    assert (backend, kwargs) == ('gloo', {'timeout': 3})
    assert ignored is not set_device and torch.cuda.set_device is set_device
    wrapped = fake_wrapper().MMDistributedDataParallel(
        module=None, device_ids=[1], broadcast_buffers=False, find_unused_parameters=True)
    assert wrapped.kwargs == {'device_ids': None, 'broadcast_buffers': False, 'find_unused_parameters': True}


def test_the_device_is_chosen_again_after_a_failed_start(monkeypatch):
    monkeypatch.setattr(launch_compat, 'has_accelerator', lambda: False)
    set_device = torch.cuda.set_device

    def fail(backend: str) -> None:
        raise RuntimeError('no one there')

    module = SimpleNamespace(**dict.fromkeys(launch_compat.LAUNCHERS, fail))
    launch_compat.patch_dist_utils(module)
    with pytest.raises(RuntimeError, match='no one there'):
        module._init_dist_pytorch('nccl')
    assert torch.cuda.set_device is set_device


@pytest.mark.parametrize(('dataset', 'shuffle', 'workers'), [
    ('StagedDataset', True, 2), ('CocoDataset', False, 2),
    ('CocoDataset', True, 4)])  # which worker loads a sample decides about what is drawn at random
def test_no_more_workers_than_processors_where_that_changes_nothing(dataset, shuffle, workers, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(2), raising=False)
    module = SimpleNamespace(Runner=SimpleNamespace(build_dataloader=lambda dataloader, seed: dataloader))
    launch_compat.patch_dataloaders(module)
    given = dict(num_workers=4, persistent_workers=True, dataset=dict(type=dataset),
                 sampler=dict(type='DefaultSampler', shuffle=shuffle))
    assert module.Runner.build_dataloader(given, 0) == dict(given, num_workers=workers)
    assert given['num_workers'] == 4
    assert module.Runner.build_dataloader(dict(given, num_workers=1), 0)['num_workers'] == 1
