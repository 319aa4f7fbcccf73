"""What the terminal shows of a log that has a file."""
from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log
from pycocotools import coco, cocoeval

from mgdet_plugin.compat import console
from mgdet_plugin.compat.console import QUIET, SAID, SHORT, VERBOSE

TABLE = '\n+-------+-----+\n| class | gts |\n+-------+-----+\n'


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the terminal as it was."""
    monkeypatch.setattr(console, '_mode', VERBOSE)
    monkeypatch.setattr(console, '_tables', False)


@pytest.mark.parametrize('level, lines', [('INFO', 4), ('DEBUG', 44)])
def test_long_messages_are_in_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str,
                                             lines: int) -> None:
    path = tmp_path / 'run.log'
    logger = MMLogger(name=level, log_file=str(path), log_level=level)
    logger.info('Config:\n' + 'x = 1\n' * 39)
    logger.info('Epoch 1')
    logger.warning('look')
    logger.error('The testing results of the whole dataset is empty.')  # by CocoMetric
    logger.warning('"FileClient" will be deprecated in future.')  # by mmengine itself
    said = capsys.readouterr().out
    assert said.count('\n') == lines + (level == 'DEBUG')
    assert (f'the config: 40 lines in {path}' in said) == (level == 'INFO')
    assert ('WARNING - nothing was detected' in said) == (level == 'INFO')
    assert path.read_text().count('x = 1') == 39


def test_what_is_for_debugging_is_not_printed_where_there_is_no_logger(capsys: pytest.CaptureFixture[str]) -> None:
    """onedl-mmdetection says so what it could not import, before the JSON that a command prints."""
    print_log('Could not import OneDL', level=logging.DEBUG)
    print_log('Loads checkpoint')
    assert capsys.readouterr().out == 'Loads checkpoint\n'


@pytest.mark.parametrize('mode', [SHORT, QUIET])
def test_the_terminal_says_what_is_for_a_person_and_the_file_has_all(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    console.show(mode)
    path = tmp_path / 'run.log'
    logger = MMLogger(name=mode, log_file=str(path))
    hidden = ['Config:\n' + 'x = 1\n' * 39, 'Epoch(train)  [1][50/50]  loss: 3.0', 'Saving checkpoint', TABLE]
    for line in hidden:
        logger.info(line)
    logger.info("stage 1 of 2 'head'", extra=SAID)
    logger.warning('look\nat it')
    logger.error('The testing results of the whole dataset is empty.')
    assert capsys.readouterr().out.splitlines() == [
        "stage 1 of 2 'head'", 'warning: look', 'at it',
        'warning: nothing was detected above test_cfg.score_thr, so there is no AP']
    written = path.read_text()
    assert all(line in written for line in [*hidden, "mmengine - INFO - stage 1 of 2 'head'", 'WARNING - look'])


def test_a_test_also_shows_tables_of_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.show(SHORT, tables=True)
    logger = MMLogger(name='tables', log_file=str(tmp_path / 'run.log'))
    logger.info(TABLE)
    logger.info('2 + 2 and a | b')
    assert capsys.readouterr().out == TABLE + '\n'


@pytest.mark.parametrize('mode', [VERBOSE, SHORT, QUIET])
def test_the_evaluation_prints_its_tables_where_all_is_shown(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.show(mode)
    cocoeval.print('DONE')
    coco.print('loading annotations')
    assert capsys.readouterr().out == ('DONE\n' if mode == VERBOSE else '')


class Clock:
    """Seconds that a test sets."""
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(line: console.ProgressLine, clock: Clock, times: list[tuple[float, float]],
          capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed at (seconds, share done)."""
    for clock.now, share in times:
        line.show(share, lambda share=share: f'at {share:g}')
    return capsys.readouterr().out


def test_a_log_has_a_line_at_each_tenth_and_every_ten_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    steps = [(second, second / 1000) for second in range(1, 1001)]
    said = shown(console.ProgressLine(clock), clock, steps, capsys)
    assert said.splitlines() == [f'at {tenth / 10:g}' for tenth in range(1, 11)]
    slow = shown(console.ProgressLine(Clock()), Clock(), [(0, 0.0)], capsys)
    assert slow == ''
    clock = Clock()
    line = console.ProgressLine(clock)
    assert shown(line, clock, [(60 * minute, 0.05 + minute / 1e5) for minute in range(31)], capsys).count('\n') == 3


def test_a_resumed_run_says_no_tenth_that_was_done_before(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    assert shown(console.ProgressLine(clock), clock, [(1, 0.55), (2, 0.59), (3, 0.61)], capsys) == 'at 0.61\n'


def test_on_a_terminal_a_line_stays_in_its_place_and_gives_way(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    line = console.ProgressLine(clock)
    monkeypatch.setattr(console, 'PROGRESS', line)
    monkeypatch.setattr(console.shutil, 'get_terminal_size', lambda: os.terminal_size((7, 24)))
    console.show(SHORT)
    logger = MMLogger(name='terminal', log_file=str(tmp_path / 'run.log'))
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    assert shown(line, clock, [(1, 0.01), (1.1, 0.02), (1.3, 0.12345)], capsys) == (
        '\r\x1b[2Kat 0.0\r\x1b[2Kat 0.1')
    logger.warning('look')
    assert capsys.readouterr().out == '\r\x1b[2Kwarning: look\n'
    line.clear()
    assert capsys.readouterr().out == ''  # it is free already
