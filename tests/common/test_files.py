"""Files that appear together, and the progress bar: on a terminal, after a second, and nowhere else."""
from __future__ import annotations

import io
import sys

import pytest

from mgdet_plugin.common import files
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('stream, delay, shown', [(Terminal(), 0, True), (Terminal(), 60, False),
                                                  (io.StringIO(), 0, False)])
def test_shows_bytes_on_a_terminal_once_the_delay_is_over(monkeypatch, stream, delay, shown):
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setattr(files, 'DELAY', delay)
    with files.byte_progress(4_000_000, 'import model5.h5') as bar:
        bar.update(1_000_000)
        bar.refresh() if delay == 0 else None
    text = stream.getvalue()
    assert ('import model5.h5' in text and '1.00M/4.00M' in text) is shown
    assert shown or text == ''


def test_several_files_appear_together_or_not_at_all(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    for path in paths:
        path.write_text('before')

    def fail(stream):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match=r'cannot write \S+b: No space left on device'):
        write_together({paths[0]: lambda stream: stream.write(b'after'), paths[1]: fail})
    assert [path.read_text() for path in paths] == ['before', 'before']
    assert sorted(tmp_path.iterdir()) == paths
