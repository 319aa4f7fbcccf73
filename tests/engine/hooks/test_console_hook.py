"""The lines a person reads of a run. Real runs, each in a process of its own: tests/cli/test_main_job.py."""
from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer

from mgdet_plugin.compat import console
from mgdet_plugin.compat.console import QUIET, SHORT
from mgdet_plugin.engine.hooks import console_hook
from mgdet_plugin.engine.hooks.console_hook import ConsoleHook, in_words

METRICS = {'coco/bbox_mAP': 0.5, 'val/loss': 71.25, 'old/coco/bbox_mAP': 0.6, 'old/loss': 65.0}


class Clock:
    """Seconds that a test sets."""
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, '_mode', SHORT)
    monkeypatch.setattr(console_hook, 'time', SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(console_hook, 'PROGRESS', console.ProgressLine(clock))
    return clock


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The plan's run, in the first of two stages."""
    run = SimpleNamespace(stage=SimpleNamespace(name='head'), kept=None, rolled_back=False,
                          plan=SimpleNamespace(stages=(1, 2)), progress=SimpleNamespace(ended=False))
    monkeypatch.setattr(console_hook, 'staged_run', lambda runner: run)
    return run


@pytest.fixture
def runner(run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the hook sees of a runner of 4 epochs of 5 steps, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    loop, logger = SimpleNamespace(stop_reason=None), logging.getLogger(str(tmp_path))
    logger.setLevel(logging.INFO)
    info: dict[str, Any] = {}
    hub = SimpleNamespace(log_scalars={'train/loss': HistoryBuffer([9.0, 3.0], [1, 1])}, runtime_info=info,
                          get_info=info.get)
    return SimpleNamespace(_train_loop=loop, train_loop=loop, epoch=0, iter=0, max_epochs=4, max_iters=20,
                           train_dataloader=range(5), val_dataloader=range(2), message_hub=hub, logger=logger,
                           hooks=[], work_dir=str(tmp_path / 'run'), cfg=SimpleNamespace(filename='my.py'),
                           _resume=False)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged for a person since the last call."""
    assert all(record.said for record in caplog.records)
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    caplog.clear()
    return lines


def test_progress_with_the_time_that_is_left(runner: SimpleNamespace, clock: Clock,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """Resumed after 10 of 20 iterations; a step takes 20 seconds."""
    hook = ConsoleHook()
    runner.epoch, runner.iter = 2, 10
    hook.before_train(runner)
    for _ in range(10):
        clock.now += 20
        hook.after_train_iter(runner, runner.iter % 5)
        runner.iter += 1
    assert capsys.readouterr().out.splitlines()[:2] == [
        "epoch 3 of 4 'head', step 2 of 5: loss 6, about 3 min left",
        "epoch 3 of 4 'head', step 4 of 5: loss 6, about 2 min left"]


def test_at_the_end_no_time_is_left(runner: SimpleNamespace, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    hook = ConsoleHook()
    runner.test_dataloader = range(2)
    for index, step in enumerate((hook.after_train_iter, hook.after_test_iter)):
        runner.epoch, runner.iter = 3, 18
        for batch in range(2):
            clock.now += 20
            step(runner, batch)
            runner.iter += 1
        assert capsys.readouterr().out.splitlines()[-1] == (
            "epoch 4 of 4 'head', step 2 of 5: loss 6", 'step 2 of 2')[index]
        console_hook.PROGRESS = console.ProgressLine(clock)


def test_a_quiet_run_has_no_progress_and_no_end(runner: SimpleNamespace, clock: Clock, caplog: pytest.LogCaptureFixture,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO)
    console.show(QUIET)
    hook = ConsoleHook()
    for runner.iter in range(20):
        clock.now += 1000
        hook.after_train_iter(runner, 0)
    hook.after_train(runner)
    assert capsys.readouterr().out == '' and said(caplog) == []
    hook.after_val_epoch(runner, METRICS)
    assert len(said(caplog)) == 1


def test_a_line_a_validation_with_both_domains_and_the_best_marked(
        runner: SimpleNamespace, run: SimpleNamespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hook, info = ConsoleHook(), runner.message_hub.runtime_info
    hook.before_train(runner)
    runner.epoch, run.kept = 1, (0.976, 0.95)
    info.update(best_ckpt='best_epoch_1.pth', best_score=0.5)
    hook.after_val_epoch(runner, METRICS)
    runner.epoch = 2
    hook.after_val_epoch(runner, METRICS)
    run.rolled_back = True
    hook.after_val_epoch(runner, {})
    line = 'AP 0.500, loss 71.25; old AP 0.600, loss 65; 97.6% of the old AP kept'
    assert said(caplog) == [f'epoch 1 of 4: {line}; best so far', f'epoch 2 of 4: {line}',
                            'epoch 2 of 4: 97.6% of the old AP kept; rolled back']


def test_nothing_detected_is_not_praised(runner: SimpleNamespace, clock: Clock,
                                         caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hook, info = ConsoleHook(), runner.message_hub.runtime_info
    hook.before_train(runner)
    runner.epoch = 1
    info.update(best_ckpt='best_coco_bbox_mAP_epoch_1.pth', best_score=0.0)
    runner.hooks = [CheckpointHook(save_best='coco/bbox_mAP', rule='greater')]
    hook.after_val_epoch(runner, {'coco/bbox_mAP': 0.0})
    Path('run/best.pth').touch()
    hook.after_train(runner)
    assert said(caplog)[:3] == ['epoch 1 of 4: AP 0.000', 'end: 1 epoch done, 0 s',
                                'nothing right was detected yet (AP 0.000); the first weights measured of epoch 1: '
                                'run/best.pth']


def test_the_end_names_the_best_and_what_comes_next(runner: SimpleNamespace, run: SimpleNamespace, clock: Clock,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hook, info = ConsoleHook(), runner.message_hub.runtime_info
    clock.now, runner.epoch, runner.iter = 200.0, 3, 15
    info.update(last_ckpt=f'{runner.work_dir}/epoch_3.pth')
    hook.after_train(runner)
    following = 'next: python tools/check_run.py run; python tools/test.py my.py run/'
    assert said(caplog) == ['end: 3 epochs done, 3 min', 'no best.pth; the last weights: run/epoch_3.pth',
                            f'{following}epoch_3.pth']
    Path('run/best.pth').touch()
    info.update(best_ckpt=f'{runner.work_dir}/best_coco_bbox_mAP_epoch_2.pth', best_score=0.5)
    runner.hooks = [CheckpointHook(save_best='coco/bbox_mAP', rule='greater')]
    run.progress.ended = True
    hook.after_train(runner)
    assert said(caplog) == ['end: 3 epochs done, ended early, 3 min',
                            'best: AP 0.500 of epoch 2: run/best.pth', f'{following}best.pth']
    runner.train_loop.stop_reason = 'the guard'
    hook.after_train(runner)
    assert said(caplog) == []  # the error says it


def test_a_test_says_every_figure(runner: SimpleNamespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner.test_dataloader = SimpleNamespace(dataset=range(36))
    ConsoleHook().after_test_epoch(runner, {'coco/bbox_mAP': 0.5, 'coco/a_precision': 0.25, 'coco/names': 'a'})
    assert said(caplog) == ['36 images in 0 s', '  coco/bbox_mAP     0.5000', '  coco/a_precision  0.2500']


@pytest.mark.parametrize(('seconds', 'words'), [(0.4, '0 s'), (89, '89 s'), (91, '2 min'), (3599, '1 h 0 min'),
                                                (11100, '3 h 5 min')])
def test_lengths_of_time(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
