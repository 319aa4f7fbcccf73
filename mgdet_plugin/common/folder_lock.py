"""One training a folder: the one at work in it holds a lock on a file there."""
from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import is_running
from mgdet_plugin.common.interruption import ASKED

NAME = 'training.lock'  # in the work folder, while a training is at work; left by a killed one, it says nothing
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_held: dict[Path, IO[str]] = {}


def check_free(folder: Path) -> None:
    """Refuse a folder that another training holds, without touching it.

    Raises:
        UserError: It does.
    """
    try:
        with (folder / NAME).open() as stream:
            _take(folder, stream)
    except (FileNotFoundError, NotADirectoryError):
        pass


@ASKED.held_back()  # a file that is made and not yet noted would stay
def hold(folder: Path) -> None:
    """Hold a folder for this process until :func:`let_go` or its end, however that comes.

    Raises:
        UserError: Another training holds it, or nothing can be written there.
    """
    path = folder / NAME
    while folder not in _held:
        try:
            stream = path.open('a+')
        except OSError as error:
            raise UserError(f'cannot write {path}: {error.strerror}; give another --work-dir') from error
        _take(folder, stream)
        if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            stream.close()  # the one before removed it just now
            continue
        stream.seek(0)
        stream.truncate()
        stream.write(f'{os.getpid()} {socket.gethostname()}\n')
        stream.flush()
        _held[folder] = stream


@ASKED.held_back()
def let_go() -> None:
    """Give free what this process holds."""
    while _held:
        folder, stream = _held.popitem()
        (folder / NAME).unlink(missing_ok=True)  # first, so that none can take a file that is about to go
        stream.close()


def _take(folder: Path, stream: IO[str]) -> None:
    """Lock the opened file, or say who has; without locks on its file system the process named in it counts."""
    try:
        fcntl.flock(stream, (fcntl.LOCK_EX if stream.writable() else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        taken = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        taken = False
    stream.seek(0)
    process, _, host = stream.read(300).strip().partition(' ')
    taken = taken or (process.isdecimal() and int(process) != os.getpid() and host == socket.gethostname()
                      and is_running(int(process)))
    if taken:
        stream.close()
        raise UserError(f'another training is at work in {folder} (process {process or "unknown"} on '
                        f'{host or "another machine"}): two would write over each other; wait for its end, or give '
                        'another --work-dir')


def _leave_to_parent() -> None:
    """A forked process, such as one that loads images, must not hold the folder when its parent is gone."""
    for stream in _held.values():
        os.close(stream.fileno())
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
