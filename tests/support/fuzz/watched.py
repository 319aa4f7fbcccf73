"""What a piece of code does to files outside a folder, seen by Python's audit hook; and what becomes of it."""
from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError

SECONDS, WALL_SECONDS = 10, 60  # of processor and by the clock that a case may take; a usual one takes a hundredth
_CHANGES = {'os.remove': 1, 'os.rename': 2, 'os.rmdir': 1, 'os.mkdir': 1, 'os.link': 2, 'os.symlink': 2,
            'os.truncate': 1, 'os.chmod': 1, 'os.chown': 1, 'os.utime': 1, 'shutil.rmtree': 1, 'shutil.move': 2,
            'shutil.copyfile': 2, 'shutil.copytree': 2}
"""Audit event -> how many of its first arguments are paths."""
_STARTS = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'socket.connect', 'socket.getaddrinfo')
_watching: list[Watch] = []


class TooSlow(BaseException):
    """A case took too long."""


class Watch:
    """Notes what touches files outside ``folder``; reading is wrong in ``secret`` alone.

    Attributes:
        found: What was done, a line each.
    """

    def __init__(self, folder: Path, secret: Path) -> None:
        self.folder, self.secret = os.path.realpath(folder), os.path.realpath(secret)
        self.found: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An event of the audit hook."""
        if event == 'subprocess.Popen' and list(arguments[1])[:2] == ['git', 'rev-parse']:
            return  # mmengine's, with what it saves
        if event in _STARTS:
            self.found.append(f'{event} {arguments!r:.200}')
        elif event == 'open':
            path, _, flags = arguments
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            self._path('writes' if writes else 'reads', path, writes)
        elif event in _CHANGES:
            for path in arguments[:_CHANGES[event]]:
                self._path(event, path, True)

    def _path(self, what: str, path: Any, changes: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        place = os.path.realpath(os.fsdecode(path))
        if place == os.devnull or os.path.basename(os.path.dirname(place)) == '__pycache__':
            return  # what Python compiles of a module that is imported for the first time
        below = any(place == root or place.startswith(root + os.sep) for root in (
            [self.folder] if changes else [self.secret]))
        if below != changes:
            self.found.append(f'{what} {place}')


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event in _STARTS or event == 'open' or event in _CHANGES):
        watch = _watching.pop()  # what is looked at here is not looked at again
        try:
            watch.see(event, arguments)
        finally:
            _watching.append(watch)


sys.addaudithook(_hook)


@contextmanager
def watched(folder: Path, secret: Path) -> Iterator[Watch]:
    """Watch the block."""
    watch = Watch(folder, secret)
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)


def _late(*_: object) -> None:
    raise TooSlow


def outcome_of(use: Callable[[], object], folder: Path, secret: Path) -> str:
    """What becomes of a case: ``accepted``, ``refused``, or ``WRONG: ...``."""
    bounds = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WALL_SECONDS)}
    before = {number: signal.signal(number, _late) for number in bounds}
    for timer, seconds in bounds.values():
        signal.setitimer(timer, seconds)
    result = 'accepted'
    try:
        with watched(folder, secret) as watch:
            use()
    except UserError as error:
        line = str(error)
        result = 'refused' if line and len(line) < 8000 else f'WRONG: no line: {line[:200]!r}'
    except TooSlow:
        result = f'WRONG: more than {SECONDS} seconds of processor, or {WALL_SECONDS}'
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if 'mgdet_plugin' in frame.filename] or place
        result = (f'WRONG: {type(error).__name__}: {str(error)[:150]!r} at {Path(ours[-1].filename).name}:'
                  f'{ours[-1].lineno}, {Path(place[-1].filename).name}:{place[-1].lineno}')
    finally:
        for number, (timer, _) in bounds.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
    return f'WRONG: {watch.found[0]}' if watch.found else result


def tree_hash(folder: Path) -> str:
    """A hash of names and contents below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob('*')):
        digest.update(str(path.relative_to(folder)).encode() + b'\0')
        digest.update(path.read_bytes() if path.is_file() else b'')
    return digest.hexdigest()
