"""results.csv: what a row says, and that a stopped run leaves the same file. Real runs: tests/engine/test_resume.py."""
from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mgdet_plugin.engine.hooks import results_hook
from mgdet_plugin.engine.hooks.results_hook import ResultsHook

METRICS = {'coco/bbox_mAP': 0.5, 'val/loss': 71.25, 'old/coco/bbox_mAP': 0.6, 'old/loss': 65.0, 'coco/classes': 'many'}


def make_runner(folder: Path, **state: Any) -> SimpleNamespace:
    """What the hook sees of a runner; its rates are typed in."""
    rates = {'train/lr': 1e-4, 'train/base_lr': 1e-4, 'train/backbone_lr': 0.0, 'train/loss': 9.0, 'val/lr': 1.0}
    scalars = {name: HistoryBuffer([value], [1]) for name, value in rates.items()}
    return SimpleNamespace(**{**dict(_train_loop=object(), _resume=False, epoch=0, iter=0, work_dir=str(folder),
                                     message_hub=SimpleNamespace(log_scalars=scalars)), **state})


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The plan's run, in its stage 'head'."""
    run = SimpleNamespace(stage=SimpleNamespace(name='head'), kept=(0.976, 0.95))
    monkeypatch.setattr(results_hook, 'staged_run', lambda runner: run)
    return run


def epochs(hook: ResultsHook, runner: SimpleNamespace, *losses: list[float]) -> None:
    """Train and validate an epoch for each list of losses, one a step; None is a step that was skipped."""
    for steps in losses:
        for loss in steps:
            outputs = {} if loss is None else dict(loss=torch.tensor(loss), loss_obj=loss / 2, lr=7.0)
            hook.after_train_iter(runner, 0, outputs=outputs)
            runner.iter += 1
        runner.epoch += 1
        hook.after_val_epoch(runner, METRICS)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / 'results.csv').open() as stream:
        return list(csv.DictReader(stream))


def test_a_row_a_validation(tmp_path: Path, run: SimpleNamespace) -> None:
    hook, runner = ResultsHook(), make_runner(tmp_path)
    epochs(hook, runner, [1.0, None, 4.0])
    run.kept, run.stage.name = None, 'neck'
    epochs(hook, runner, [3.0])
    first, second = rows(tmp_path)
    assert first == dict(
        epoch='1', iter='3', stage='head', kept='0.976', lr='0.0001', backbone_lr='0.0',
        **{'coco/bbox_mAP': '0.5', 'val/loss': '71.25', 'old/coco/bbox_mAP': '0.6', 'old/loss': '65.0',
           'train/loss': '2.5', 'train/loss_obj': '1.25'})
    assert (second['stage'], second['kept'], second['train/loss'], second['iter']) == ('neck', '', '3.0', '4')


def test_a_resumed_run_takes_rows_and_sums_of_its_checkpoint(tmp_path: Path) -> None:
    """Stopped in the third epoch; the killed process had gone on to the end of the fourth."""
    whole, runner, checkpoint = ResultsHook(), make_runner(tmp_path), {}
    epochs(whole, runner, [1.0], [2.0])
    whole.after_train_iter(runner, 0, outputs=dict(loss=10.0))
    whole.before_save_checkpoint(runner, checkpoint)
    epochs(whole, runner, [20.0], [4.0])
    text = (tmp_path / 'results.csv').read_text()
    assert '15.0' in text and checkpoint['results']['count'] == 1
    resumed, later = ResultsHook(), make_runner(tmp_path, _resume=True, epoch=2, iter=2)
    resumed.after_load_checkpoint(later, checkpoint)
    resumed.before_train(later)
    assert [row['epoch'] for row in rows(tmp_path)] == ['1', '2']
    epochs(resumed, later, [20.0], [4.0])
    assert (tmp_path / 'results.csv').read_text() == text


def test_a_validation_that_came_after_its_checkpoint_is_there_once(tmp_path: Path) -> None:
    """mmengine's loop does not do it again, ours does."""
    hook, runner, checkpoint = ResultsHook(), make_runner(tmp_path), {}
    epochs(hook, runner, [1.0])
    hook.before_save_checkpoint(make_runner(tmp_path), checkpoint)
    checkpoint['results']['rows'] = []
    text = (tmp_path / 'results.csv').read_text()
    for again in (False, True):
        resumed, later = ResultsHook(), make_runner(tmp_path, _resume=True, epoch=1, iter=1)
        resumed.after_load_checkpoint(later, {**checkpoint, 'results': {
            **checkpoint['results'], 'sums': dict(loss=1.0, loss_obj=0.5), 'count': 1}})
        resumed.before_train(later)
        if again:
            resumed.after_val_epoch(later, METRICS)
        assert (tmp_path / 'results.csv').read_text() == text


def test_a_new_run_begins_anew_and_a_lone_validation_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / 'results.csv').write_text('epoch,iter\n1,2\n')
    hook, runner = ResultsHook(), make_runner(tmp_path)
    hook.before_train(runner)
    assert not (tmp_path / 'results.csv').exists()
    hook.after_val_epoch(make_runner(tmp_path, _train_loop=None), METRICS)
    assert not (tmp_path / 'results.csv').exists()


def test_a_file_that_is_none_of_this_run_is_replaced(tmp_path: Path) -> None:
    (tmp_path / 'results.csv').write_text('something,else\n1,2\n')
    hook, runner = ResultsHook(), make_runner(tmp_path, _resume=True, epoch=2, iter=2)
    hook.after_load_checkpoint(runner, dict(results=dict(rows=[dict(epoch='2', iter='1')], sums={}, count=0)))
    hook.before_train(runner)
    assert (tmp_path / 'results.csv').read_text() == 'epoch,iter\n2,1\n'
