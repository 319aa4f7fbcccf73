"""What the terminal shows of a log that has a file."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mmengine.logging import MMLogger, print_log
from pycocotools import coco, cocoeval

from mgdet_plugin.compat import console


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


def test_a_quiet_run_says_a_line_a_stage_and_a_validation_and_the_file_has_all(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, '_quiet', False)
    console.be_quiet()
    path = tmp_path / 'run.log'
    logger = MMLogger(name='quiet', log_file=str(path))
    said = ["stage 1/2 'head' from epoch 1 for 5", 'Epoch(train)  [1][50/50]  loss: 3.0', 'Saving checkpoint',
            "stage 'head' proven by hash: 3 frozen tensors",
            'Epoch(val) [5][7/7]    coco/bbox_mAP: 0.4010  coco/bbox_mAP_50: 0.8060  coco/bbox_mAP_s: 0.2000  '
            'val/loss: 71.5  val/loss_obj: 9.1  old/coco/bbox_mAP: 0.6000  drift/loss: 0.9975  time: 0.3675']
    for line in said:
        logger.info(line)
    logger.warning('look')
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [said[0], 'epoch 5 validated, coco/bbox_mAP 0.4010, coco/bbox_mAP_50 0.8060, val/loss 71.5, '
                         'old/coco/bbox_mAP 0.6000']
    assert shown[2].endswith('WARNING - look') and len(shown) == 3
    assert all(line in path.read_text() for line in said)


@pytest.mark.parametrize('quiet', [False, True])
def test_tables_of_the_evaluation_are_printed_unless_a_run_is_quiet(
        quiet: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, '_quiet', quiet)
    cocoeval.print('DONE')
    coco.print('loading annotations')
    assert capsys.readouterr().out == ('' if quiet else 'DONE\n')
