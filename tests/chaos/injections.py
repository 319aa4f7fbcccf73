"""What goes wrong in a training of the fork server: in the child alone, by patches, so that the package knows nothing.

Every step by which a file comes to be or goes is counted: opening the temporary file, its first and its twentieth
write, the sync before it takes its name, that, a second name (a link), a removal. A training without faults writes the
steps down, and each is a place to die or to fail at.
"""
from __future__ import annotations

import ctypes
import errno
import locale
import os
import pathlib
import re
import resource
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

_MIDDLE = 20  # a write of a checkpoint that is neither the first nor the last


def inject(progress: str = '', trace: str = '', kill_at: int = -1, error_at: int = -1, number: int = errno.EIO,
           limits: dict[str, int] | None = None, user: int = 0, broken_writer: bool = False,
           environment: dict[str, str | None] | None = None, calls: Sequence[str] = ()) -> None:
    """Prepare this process for a fault, and leave out what takes most of a small training's time and writes nothing.

    Args:
        progress: File that takes the iterations done and the iteration the training began with.
        trace: File that takes every step, a line each.
        kill_at: Step before which the process is killed, as by ``kill -9``.
        error_at: Step that fails.
        number: ``errno`` of that failure.
        limits: Name of a limit of ``resource`` -> its value.
        user: Number of the user to be from here on.
        broken_writer: Write every file as a program does that does not think of being killed: under its own name.
        environment: Variable -> its value, None to take it away.
        calls: Names of functions of this module to call, too.
    """
    leave_out()
    for name, value in (environment or {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    steps = Steps(trace, kill_at, error_at, number)
    steps.watch()
    if progress:
        follow(progress)
    if broken_writer:
        write_carelessly()
    for name, most in (limits or {}).items():
        resource.setrlimit(getattr(resource, name), (most, most))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for name in calls:
        globals()[name]()


def leave_out() -> None:
    """Ask no compiler for its version, build a fourth of the layers, compute on one thread."""
    import mmengine.runner.runner
    import torch

    from mgdet_plugin.models import ScaledDarknet
    mmengine.runner.runner.collect_env = dict
    ScaledDarknet.arch_settings = {53: ((1, ) * 5, ScaledDarknet.arch_settings[53][1])}
    torch.set_num_threads(1)


class Steps:
    """Counts the steps of this process, not of those it starts, and fails or dies at one."""

    def __init__(self, trace: str, kill_at: int, error_at: int, number: int) -> None:
        self.trace, self.kill_at, self.error_at, self.number = trace, kill_at, error_at, number
        self.count, self.process, self.folder = 0, os.getpid(), os.path.join(os.getcwd(), '')

    def take(self, kind: str, path: Any, half: Callable[[], object] = int) -> None:
        """One more step; ``half`` does a part of it."""
        name = re.sub(r'\.\d+\.tmp$', '', Path(str(path)).name).lstrip('.')
        if os.getpid() != self.process or not os.path.abspath(path).startswith(self.folder):
            return  # a library's cache is none of the training's files
        self.count += 1
        if self.trace:
            with open(self.trace, 'a') as stream:
                stream.write(f'{kind} {name}\n')
        if self.count == self.kill_at + 1:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.error_at + 1:
            half()
            raise OSError(self.number, os.strerror(self.number), str(path))

    def watch(self) -> None:
        """Patch what files come and go by."""
        from mgdet_plugin.common import files
        for name in ('replace', 'link', 'remove', 'unlink'):
            setattr(os, name, self._counted(name, getattr(os, name)))
        pathlib.os = os  # type: ignore[attr-defined]
        self._watch_writes(files.CountedStream)
        fsync, opened = os.fsync, pathlib.Path.open

        def counted_fsync(number: int) -> None:
            place = os.readlink(f'/proc/self/fd/{number}')
            if place.endswith('.tmp'):
                self.take('fsync', place)
            fsync(number)

        def counted_open(path: Path, mode: str = 'r', *rest: Any, **more: Any) -> Any:
            if mode == 'wb':
                self.take('open', path)
            return opened(path, mode, *rest, **more)

        os.fsync = counted_fsync
        pathlib.Path.open = counted_open  # type: ignore[method-assign]

    def _counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*paths: Any, **more: Any) -> Any:
            if kind in ('replace', 'link') or os.path.exists(paths[0]):
                self.take(kind, paths[-1])
            return function(*paths, **more)

        return counted

    def _watch_writes(self, stream: Any) -> None:
        write = stream.write

        def counted_write(this: Any, content: Any) -> int:
            number = vars(this)['number'] = vars(this).get('number', 0) + 1
            if number in (1, _MIDDLE):
                try:
                    self.take('write' if number == 1 else 'write on', this._stream.name,
                              lambda: (this._stream.write(bytes(content)[:len(content) // 2]), this._stream.flush()))
                except OSError as error:  # as one of the file itself
                    this.failure = error
                    raise
            return int(write(this, content))

        stream.write = counted_write


def follow(path: str) -> None:
    """Write down how far a training is."""
    from mgdet_plugin.engine.loops.staged_train_loop import StagedTrainLoop
    step, process = StagedTrainLoop.run_iter, os.getpid()
    opened = os.open(path, os.O_RDWR | os.O_CREAT)
    begun: list[int] = []

    def run_iter(loop: Any, *arguments: Any) -> None:
        if os.getpid() == process and not begun:
            begun.append(loop.iter)
            os.pwrite(opened, struct.pack('q', loop.iter), 8)
        os.pwrite(opened, struct.pack('q', loop.iter + 1), 16)
        step(loop, *arguments)
        os.pwrite(opened, struct.pack('q', loop.iter), 0)

    StagedTrainLoop.run_iter = run_iter  # type: ignore[method-assign]


def how_far(path: Path) -> tuple[int, int, int]:
    """Iterations done, the iteration begun with, the number of the last one begun; 0 of a training that did none."""
    content = path.read_bytes() if path.exists() else b''
    return struct.unpack('qqq', content.ljust(24, b'\0'))


def write_carelessly() -> None:
    """Write files in place."""
    from mgdet_plugin.common import checkpoints, files, guard_record
    from mgdet_plugin.engine import run_folder, transitions
    from mgdet_plugin.engine.hooks import results_hook, whole_checkpoint_hook

    def write(writers: dict[Path, Callable[[BinaryIO], object]], count: Callable[[int], object] = int) -> None:
        for path, writer in writers.items():
            with path.open('wb') as stream:
                writer(files.CountedStream(stream, count))  # type: ignore[arg-type]

    for module in (files, checkpoints, guard_record, transitions, run_folder, results_hook, whole_checkpoint_hook):
        module.write_together = write  # type: ignore[attr-defined]


def slow_steps() -> None:
    """Let every iteration take three seconds."""
    from mgdet_plugin.engine.optim.step_guard import StepGuard
    StepGuard.step = _slow(StepGuard.step, 3.0)  # type: ignore[method-assign]


def endless_steps() -> None:
    """Let every iteration take longer than anybody waits, and the patience be short."""
    from mgdet_plugin.common import interruption
    from mgdet_plugin.engine.optim.step_guard import StepGuard
    interruption.PATIENCE = 2.0
    StepGuard.step = _slow(StepGuard.step, 1000.0)  # type: ignore[method-assign]


def slow_validation() -> None:
    """Let every batch of a validation take three seconds, after its losses were measured."""
    from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
    LossValLoop.run_iter = _slow(LossValLoop.run_iter, 3.0)  # type: ignore[method-assign]


def _slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def slow(*arguments: Any, **more: Any) -> Any:
        found = function(*arguments, **more)
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # as a call into a library, which goes on after a signal
            time.sleep(0.01)
        return found

    return slow


def clock_jumps_back() -> None:
    """Let the clock go back a day in the second epoch."""
    now, began = time.time, time.monotonic()
    time.time = lambda: now() - (86_400 if time.monotonic() > began + 1 else 0)


def ignore_hangup() -> None:
    """As ``nohup`` does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def low_file_limit() -> None:
    """Allow 24 open files, and to ask for more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def little_memory() -> None:
    """Allow 200 MB of addresses more than there are when the first step comes, and let it ask for twice that."""
    import torch

    from mgdet_plugin.engine.optim.step_guard import StepGuard
    step = StepGuard.step

    def hungry(*arguments: Any) -> Any:
        pages = int(Path('/proc/self/statm').read_text().split()[0])
        most = pages * resource.getpagesize() + 200_000_000
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        torch.zeros(100_000_000)
        return step(*arguments)

    StepGuard.step = hungry  # type: ignore[method-assign]


def plain_locale() -> None:
    """Take the C locale."""
    locale.setlocale(locale.LC_ALL, 'C')


def turkish_locale() -> None:
    """Take a Turkish one, in which a comma is the decimal point."""
    locale.setlocale(locale.LC_ALL, 'tr_TR.UTF-8')


def nowhere_for_temporary_files() -> None:
    """Let Python look for its folder again."""
    tempfile.tempdir = None


def tiny_shared_memory() -> None:
    """Put a file system of 64 kB in the place of /dev/shm, for this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private_below = 0x20000, 1 << 18 | 1 << 14
    for failed in (libc.unshare(new_mounts), libc.mount(b'none', b'/', None, private_below, None),
                   libc.mount(b'tmpfs', b'/dev/shm', b'tmpfs', 0, b'size=64k')):
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
