"""start.pth: written once before the first step, read back on resume, held against run and model."""
from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.start_weights import START, distances, load_start, run_name, save_start
from tests.support.staged_run import differences

CLASSES = ('a', 'b')


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.neck = nn.Linear(4, 4)
        self.bbox_head = nn.Linear(4, 2)


class Run:
    """What of a runner is looked at."""

    def __init__(self, work_dir, model, iteration=0, run='one'):
        self.work_dir, self.model, self.iter = str(work_dir), model, iteration
        self.train_dataloader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=CLASSES)))
        self.hooks = [SimpleNamespace(), SimpleNamespace(progress=SimpleNamespace(run=run))]


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = Net()
    begun = {key: value.clone() for key, value in model.state_dict().items()}
    save_start(Run(tmp_path, model))
    with torch.no_grad():
        model.neck.weight.add_(1)
    assert differences(load_start(Run(tmp_path, model, iteration=3)), begun) == []
    meta = load_checkpoint(tmp_path / START)[1]['meta']
    assert meta == dict(run='one', dataset_meta=dict(classes=CLASSES))
    assert [path.name for path in tmp_path.iterdir()] == [START]


def test_written_once_a_run_and_never_by_a_resumed_one(tmp_path):
    """A second hook asks after the first step; a resumed run's weights are not the start."""
    model, run = Net(), Run(tmp_path, Net())
    save_start(run)
    written = (tmp_path / START).stat().st_mtime_ns
    save_start(run)
    save_start(Run(tmp_path, model, iteration=1))
    assert (tmp_path / START).stat().st_mtime_ns == written


def test_a_fresh_run_replaces_an_older_runs_file(tmp_path):
    save_start(Run(tmp_path, Net(), run='one'))
    model = Net()
    save_start(Run(tmp_path, model, run='two'))
    assert differences(load_start(Run(tmp_path, Net(), iteration=1, run='two')), dict(model.state_dict())) == []


def test_refuses_what_is_not_the_resumed_runs(tmp_path):
    with pytest.raises(UserError, match=r'start\.pth is not there.*copy it from the folder'):
        load_start(Run(tmp_path, Net(), iteration=1))
    save_start(Run(tmp_path, Net(), run='one'))
    with pytest.raises(UserError, match='of the run one, and the resumed one is two'):
        load_start(Run(tmp_path, Net(), iteration=1, run='two'))
    other = Net()
    other.bbox_head = nn.Linear(4, 3)
    with pytest.raises(UserError, match=r'of another model: 2 tensors differ \(bbox_head'):
        load_start(Run(tmp_path, other, iteration=1))
    (tmp_path / START).write_bytes(b'no checkpoint')
    with pytest.raises(UserError, match='no checkpoint that torch can load safely'):
        load_start(Run(tmp_path, Net(), iteration=1))


def test_a_file_that_does_not_name_its_run_is_taken(tmp_path):
    model = Net()
    for meta in (None, {}):
        torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / START)
        assert differences(load_start(Run(tmp_path, Net(), iteration=1)), dict(model.state_dict())) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        save_start(Run(tmp_path / 'file' / 'run', Net()))


def test_run_name_before_the_plan_is_read():
    run = Run('.', Net())
    assert run_name(run) == 'one'
    run.hooks = [SimpleNamespace(progress=None)]
    assert run_name(run) is None


def test_distances_by_hand():
    model = Net()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.neck.parameters():
            parameter.mul_(1.25)
        model.bbox_head.weight[0, 0] += 1e-25  # its square has no float32
        model.backbone[1].running_mean.add_(5)  # no parameter
    start['bbox_head.weight'][0, 0] = 0.
    with torch.no_grad():
        model.bbox_head.weight[0, 0] = 1e-25
    found = distances(model, start)
    assert list(found) == ['backbone', 'neck', 'bbox_head']
    assert found['backbone'] == 0.0
    assert found['neck'] == pytest.approx(0.25, rel=1e-6)
    size = torch.cat([start['bbox_head.weight'].flatten(), start['bbox_head.bias']]).double().norm()
    assert 0 < found['bbox_head'] == pytest.approx(1e-25 / float(size), rel=1e-6)


def test_distance_from_nothing():
    model = nn.ModuleDict(dict(neck=nn.Linear(2, 1, bias=False)))
    start = {'neck.weight': torch.zeros(1, 2)}
    assert distances(model, start)['neck'] == float('inf')
    nn.init.zeros_(model['neck'].weight)
    assert distances(model, start)['neck'] == 0.0


def process(rank, folder, port):
    """One of two: the second has no file of its own, and errors of the first are its own, too."""
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Net()
    own = folder / f'disk{rank}'
    save_start(Run(own, model))
    assert (own / START).is_file() == (rank == 0)
    loaded = load_start(Run(own, Net(), iteration=1))
    assert differences(loaded, dict(model.state_dict())) == []
    with pytest.raises(UserError, match=r'disk0/start\.pth is of the run one'):
        load_start(Run(own, Net(), iteration=1, run='two'))
    (folder / f'passed{rank}').touch()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (tmp_path, port), nprocs=2)
    assert sorted(path.name for path in tmp_path.glob('passed*')) == ['passed0', 'passed1']
