"""What the terminal shows of a log that has a file."""
from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.logging import MMLogger


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
