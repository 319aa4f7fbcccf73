"""Signals that ask a command to end: it does at once, or, in the middle of a training, after the step it is at."""
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 20.0  # seconds for a step and what is saved after it; who sends SIGTERM sends SIGKILL after 30
_SOON = 0.01  # seconds
_SAME = 1.0  # seconds: torchrun sends SIGTERM right after the Ctrl-C that its processes have got, too


class Interrupted(BaseException):
    """A training was asked to end, and has: ``str()`` says how far it came and which file holds it."""


class Interruption:
    """What signals this process was sent.

    Attributes:
        number: The first of them, None before.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._time, self._waits, self._busy = 0.0, False, False
        self._taken: set[signal.Signals] = set()
        self._blocked: set[signal.Signals | int] = set()  # by others, as a process is forked

    def listen(self) -> None:
        """Take note of signals from now on; SIGHUP that is ignored, as ``nohup`` has it, stays ignored.

        What forks processes ends them by SIGTERM, so that is taken note of even where it came ignored.
        """
        self.__init__()  # type: ignore[misc]
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)
                self._taken.add(number)
        signal.signal(signal.SIGALRM, self._take)

    def ignore(self) -> None:
        """Let no signal come between what is left to do."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def before_fork(self) -> None:
        """Let signals wait: one that a new process gets before its ways are set would be lost."""
        self._busy = True
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._taken)

    def after_fork(self) -> None:
        """Take signals again."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
        self._busy = False

    def forked(self) -> None:
        """A process that this one has forked ends by a signal as ever; it leaves Ctrl-C to its parent."""
        for number in self._taken:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        self.after_fork()

    @contextmanager
    def after_step(self) -> Iterator[None]:
        """In the block a first signal only sets ``number``, which the block looks at; a second one ends it at once.

        So does the first one where the block has not ended after :data:`PATIENCE` seconds.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.number is not None:
            raise KeyboardInterrupt

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Let signals wait until the block, which must be short, is done: what it makes it also notes."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        now, first = time.monotonic(), self.number is None
        if first:
            self.number, self._time = number, now
            if self._waits:
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                return
        elif number != signal.SIGALRM and self._waits and now - self._time < _SAME:
            return
        if self._busy:  # what is raised around a fork is lost, and a block held back has yet to note what it made
            signal.setitimer(signal.ITIMER_REAL, _SOON)
            return
        raise KeyboardInterrupt


ASKED = Interruption()
os.register_at_fork(before=ASKED.before_fork, after_in_parent=ASKED.after_fork, after_in_child=ASKED.forked)
