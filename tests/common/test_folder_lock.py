"""One training a folder, whatever the one before left there."""
from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgdet_plugin.common import folder_lock
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.folder_lock import NAME, check_free, hold, let_go
from mgdet_plugin.common.interruption import ASKED, SIGNALS


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    let_go()


def in_child(folder: Path) -> str:
    """What a forked process that wants the folder is told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            check_free(folder)
            hold(folder)
            os.write(writing, b'held')
        except UserError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    return os.fdopen(reading, 'rb').read().decode()


def test_a_second_one_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    hold(tmp_path)
    assert in_child(tmp_path).startswith(
        f'another training is at work in {tmp_path} (process {os.getpid()} on {socket.gethostname()})')
    let_go()
    assert list(tmp_path.iterdir()) == []
    assert in_child(tmp_path) == 'held'


def test_what_a_killed_one_left_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(f'{os.getppid()} {socket.gethostname()}\n')  # alive, and not at work here
    check_free(tmp_path)
    hold(tmp_path)
    assert (tmp_path / NAME).read_text() == f'{os.getpid()} {socket.gethostname()}\n'


@pytest.mark.parametrize('process, host, taken', [
    (os.getppid(), socket.gethostname(), True), (999_999_999, socket.gethostname(), False),
    (os.getppid(), 'elsewhere', False), ('', '', False)])
def test_without_locks_the_process_counts(process: object, host: str, taken: bool, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, 'no locks')

    monkeypatch.setattr(fcntl, 'flock', flock)
    (tmp_path / NAME).write_text(f'{process} {host}\n')
    if taken:
        with pytest.raises(UserError, match='another training is at work'):
            hold(tmp_path)
    else:
        hold(tmp_path)
        assert folder_lock._held


def test_a_signal_as_the_lock_is_taken_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends, and what it was about to hold is removed with what it held."""
    monkeypatch.setattr(fcntl, 'flock', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    ASKED.listen()
    try:
        with pytest.raises(KeyboardInterrupt):
            hold(tmp_path)
            time.sleep(5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ASKED.number = None
    let_go()
    assert list(tmp_path.iterdir()) == []
