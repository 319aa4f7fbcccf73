"""The guard in two processes: a bad number in one skips the step of both, and losses are those of one process."""
from __future__ import annotations

import json

import pytest
import torch
from mmdet.registry import MODELS

from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.guard.baselines import subset_loader
from tests.engine.loops.test_validation import KeepingEvaluator, bare_runner, loader_of
from tests.support.ddp_guard_run import FAULTS, IMAGES
from tests.support.guarded_run import guard_json, guarded_config
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, newest
from tests.support.two_processes import run_two


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


@pytest.fixture(scope='module')
def folder(tmp_path_factory, data):
    """The run of ``tests/support/ddp_guard_run.py``."""
    folder = tmp_path_factory.mktemp('runs')
    run_two('tests.support.ddp_guard_run', folder, data, timeout=120)
    return folder


def test_a_fault_in_one_process_skips_the_step_of_both(folder):
    records = [json.loads((folder / f'rank{rank}.json').read_text()) for rank in (0, 1)]
    assert [record['epochs'] for record in records] == [2, 2]
    for iteration in range(8):
        (one, one_after), (other, other_after) = (record['notes'][iteration:iteration + 2] for record in records)
        assert one['weights'] == other['weights'] and one_after['weights'] == other_after['weights']
        changed = [{part for part in before if before[part] != after[part]}
                   for before, after in ((one, one_after), (other, other_after))]
        assert changed == [set() if iteration in FAULTS else {'weights', 'buffers', 'average'}] * 2, iteration
    lines = [json.loads(line) for line in (folder / 'run' / 'bad_batches.jsonl').read_text().splitlines()]
    assert [(line['iter'] - 1, line['kind'], line['rank']) for line in lines] == [
        (iteration, kind.removeprefix('nan '), rank) for iteration, kind in FAULTS.items() for rank in (0, 1)]
    assert [line['files'] for line in lines] == [
        records[rank]['files'][iteration] for iteration in FAULTS for rank in (0, 1)]
    assert [bool(line['names']) for line in lines] == [
        False, True,  # whose loss it was
        True, True,  # DDP has made the gradients the same
        False, True]
    assert guard_json(folder / 'run')['bad_steps'] == len(FAULTS)


@torch.no_grad()
def test_losses_are_those_of_one_process(folder, data, tmp_path):
    """Of seven images, of which a sampler repeats one, and of the five of the subset that is measured in training."""
    cfg = guarded_config(tmp_path, data, [FULL])
    cfg.val_dataloader.dataset.indices = IMAGES
    loader, model = loader_of(cfg, 2), MODELS.build(cfg.model)
    model.load_state_dict(torch.load(folder / 'run' / 'start.pth')['state_dict'])
    alone = measure(model, loader)
    assert len(alone) == 5
    together = guard_json(folder / 'run')['baseline']['pretrained']
    assert {name: together[f'val/{name}'] for name in alone} == pytest.approx(alone, rel=1e-6)
    subset = measure(model, subset_loader(LossValLoop(bare_runner(model), loader, KeepingEvaluator()), 5))
    kept = newest(folder / 'run')['guard']['record']['subset']
    assert {name: kept[f'val/{name}'] for name in subset} == pytest.approx(subset, rel=1e-6)
    model.load_state_dict(newest(folder / 'run')['state_dict'])
    last = guard_json(folder / 'run')['validations'][-1]['metrics']
    assert {name: last[f'val/{name}'] for name in alone} == pytest.approx(measure(model, loader), rel=1e-6)
