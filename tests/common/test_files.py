"""Files that appear together, and the progress bar: on a terminal, after a second, and nowhere else."""
from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mgdet_plugin.common import files
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import check_destination, check_folder, write_together


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


@pytest.mark.parametrize(('path', 'line'), [
    ('/proc/x.png', r'cannot write /proc/x\.png: no file can be made \(.+\) in /proc; give another path'),
    ('nowhere/x.png', 'there is no folder nowhere; make it first')])
def test_a_file_that_cannot_be_made_is_refused_before_any_work(path, line):
    with pytest.raises(UserError, match=line):
        check_destination(Path(path))


def test_a_folder_is_tried_and_not_made(tmp_path):
    (tmp_path / 'file').touch()
    assert check_folder(tmp_path / 'a/b') == tmp_path / 'a/b' and [*tmp_path.iterdir()] == [tmp_path / 'file']
    for folder, line in ((tmp_path / 'file/a', 'file is no folder; give'), (Path('/proc/a/b'), 'in /proc; give')):
        with pytest.raises(UserError, match=line):
            check_folder(folder)


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
