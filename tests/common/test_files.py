"""The progress bar: on a terminal, after a second, and nowhere else."""
from __future__ import annotations

import io
import sys

import pytest

from mgdet_plugin.common import files


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
