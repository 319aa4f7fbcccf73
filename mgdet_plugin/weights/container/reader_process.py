"""List a stranger's HDF5 file in a process of its own, so that the HDF5 library can neither crash nor fill this one.

The child inherits the opened file, limits itself (memory, processor time, no further files), lists the structure with
:class:`.safe_h5.SafeH5` and answers with one JSON document. It reads no array: those are read by the caller from the
places listed, see :mod:`.stored_array`.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import astuple, dataclass
from importlib import import_module
from io import FileIO
from pathlib import Path
from threading import Event, Timer
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import PACKAGE
from mgdet_plugin.weights.container.file_window import BLOCK_BYTES, FileWindow
from mgdet_plugin.weights.container.stored_array import Piece, Storage, StoredArray, damage_refused

TEXT_ATTRIBUTES = ('layer_names', 'weight_names', 'name', 'keras_version', 'backend')
"""Attributes of groups that are listed; all others are never read."""

MAX_LISTING_BYTES = 16 * 2 ** 20    # a training file's takes 150 KB
MEMORY_BYTES = 100 * 2 ** 20        # beyond the child's size after its imports; a training file takes 20 MB
CPU_SECONDS = 2.0                   # after its imports, for an empty file; listing the full network takes 0.1, 0.5 on a
                                    # machine that others use, too
CPU_SECONDS_PER_BYTE = 2e-8         # 3.6 seconds more for the full network
MAX_CPU_SECONDS = 10.0              # a file may claim to be large at no cost
WALL_SECONDS = 40.0                 # of a child that waits, for a disk or for a processor
WALL_SECONDS_PER_BYTE = 5e-8        # 20 MB a second
MESSAGE_BYTES = 4_096
CHILD_IMPORTS = ('mgdet_plugin.weights.container.safe_h5', 'encodings.ascii', 'encodings.latin_1')
"""All the child needs, loaded while it may still open files."""

START = ('import sys, json; sys.path[:] = json.loads(sys.argv[1]); '
         'from mgdet_plugin.weights.container import reader_process; reader_process.serve(*sys.argv[2:])')
ENVIRONMENT = dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MKL_NUM_THREADS='1', HDF5_PLUGIN_PRELOAD='::',
                   HDF5_USE_FILE_LOCKING='FALSE')

Texts = dict[str, dict[str, list[str] | str]]
"""Group -> attribute -> its texts, or in their place the line that says why they are refused; without absent ones."""


@dataclass(frozen=True)
class Listing:
    """The structure of a file."""

    arrays: dict[str, StoredArray]  # by absolute path
    groups: set[str]  # absolute paths
    texts: Texts


class ListingProcess:
    """The child, started at once.

    Args:
        window: The HDF5 content, a part of an opened file.
        name: What to call the file in messages.
    """

    def __init__(self, window: FileWindow, name: str) -> None:
        self._name, self._size, self._late = name, window.size, Event()
        inherits = os.name == 'posix'
        descriptor = window.stream.fileno()
        source = str(descriptor) if inherits else str(window.stream.name)
        path = json.dumps([str(PACKAGE.parent), *filter(None, sys.path)])
        # Isolated (-I) and without site (-S): nothing from the current folder or a person's start-up files is run.
        command = [sys.executable, '-I', '-S', '-c', START, path, source, str(window.offset), str(window.size), name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=(descriptor,) if inherits else (), env={**os.environ, **ENVIRONMENT})

    def result(self) -> Listing:
        """Wait for the listing.

        Raises:
            UserError: The file is refused, or listing it crashed or broke a limit.
            RuntimeError: The child did not start.
        """
        seconds = WALL_SECONDS + WALL_SECONDS_PER_BYTE * self._size
        timer = Timer(seconds, self._end_late)
        timer.start()
        try:
            assert self._process.stdout is not None and self._process.stderr is not None
            answer = bytearray()
            while len(answer) <= MAX_LISTING_BYTES and (block := self._process.stdout.read(BLOCK_BYTES)):
                answer += block
            if len(answer) > MAX_LISTING_BYTES:
                self._process.kill()
            message = self._process.stderr.read(MESSAGE_BYTES)
            code = self._process.wait()
        finally:
            timer.cancel()
            timer.join()
            self.close()
        if code == 0 and answer:
            with damage_refused(self._name):
                return listing_from(json.loads(answer))
        raise self._failure(code, seconds, message)

    def _end_late(self) -> None:
        self._late.set()
        self._process.kill()

    def _failure(self, code: int, seconds: float, message: bytes) -> Exception:
        damaged = f'{self._name}: damaged HDF5'
        again = 'copy or download the file again'
        if self._late.is_set():
            return UserError(f'{self._name}: listing its structure took more than {seconds:.0f} seconds; {again}')
        if code > 0 and b'MemoryError' not in message:
            return RuntimeError(f'the process that lists weights files ended with code {code}: '
                                f'{message.decode(errors="replace")}')
        if code in (-getattr(signal, 'SIGPROF', 0), -getattr(signal, 'SIGXCPU', 0)):
            return UserError(f'{damaged} (listing it took more than {cpu_seconds(self._size):.1f} seconds of processor '
                             f'time, its structure is endless); {again}')
        kind = signal.Signals(-code).name if code < 0 else 'out of memory'
        return UserError(f'{damaged} (the HDF5 library ended on it: {kind}); {again}')

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def listing_from(answer: dict[str, Any]) -> Listing:
    """The listing in the child's answer; its refusal is raised as a :class:`UserError`."""
    if 'error' in answer:
        raise UserError(answer['error'])
    arrays = {}
    for path, shape, dtype, (order, blocks, chunk, filters) in answer['arrays']:
        pieces = tuple(Piece(address, size, tuple(start), mask) for address, size, start, mask in blocks)
        storage = Storage(order, pieces, None if chunk is None else tuple(chunk), tuple(filters))
        arrays[path] = StoredArray(path, tuple(shape), dtype, storage)
    return Listing(arrays, set(answer['groups']), answer['texts'])


def cpu_seconds(size: int) -> float:
    """Processor time for listing a file of ``size`` bytes."""
    return min(CPU_SECONDS + CPU_SECONDS_PER_BYTE * size, MAX_CPU_SECONDS)


def serve(source: str, offset: str, size: str, name: str) -> None:
    """What the child runs: list one file, answer, end.

    ``source`` is the number of the inherited file descriptor, or a path where files are not inherited; ``offset`` and
    ``size`` are those of the HDF5 content.
    """
    safe_h5, *_ = map(import_module, CHILD_IMPORTS)
    window = FileWindow(FileIO(int(source) if source.isdigit() else source, closefd=False), int(offset), int(size))
    limit_this_process(cpu_seconds(window.size))
    try:
        with damage_refused(name), safe_h5.SafeH5(window, name) as file:
            answer = json.dumps(answer_for(file)).encode()
            if len(answer) > MAX_LISTING_BYTES:
                raise UserError(f'{name}: its structure takes more than {MAX_LISTING_BYTES:,} bytes to list; no Keras '
                                'weights file has so much')
    except UserError as error:
        answer = json.dumps(dict(error=str(error))).encode()
    except Exception as error:  # whatever a stranger's bytes may bring about, it is one line
        line = f'{name}: damaged HDF5 ({type(error).__name__} while listing it); copy or download the file again'
        answer = json.dumps(dict(error=line)).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
    os._exit(0)  # without closing what the HDF5 library still holds


def limit_this_process(cpu: float) -> None:
    """Let this process use little more memory, ``cpu`` seconds of processor time and no further files."""
    try:
        resource = import_module('resource')
    except ImportError:  # not on Windows; the parent's deadline remains
        return
    limits = dict(RLIMIT_CORE=0, RLIMIT_FSIZE=0, RLIMIT_NOFILE=0, RLIMIT_NPROC=0)
    statistics = Path('/proc/self/statm')
    if statistics.exists():
        used = int(statistics.read_text().split()[0]) * resource.getpagesize()
        limits['RLIMIT_AS'] = used + MEMORY_BYTES
    for limit, value in limits.items():
        if hasattr(resource, limit):
            allowed = resource.getrlimit(getattr(resource, limit))[1]
            value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
            resource.setrlimit(getattr(resource, limit), (value, value))
    signal.setitimer(signal.ITIMER_PROF, cpu)  # its signal ends the process, inside the HDF5 library too


def answer_for(file: Any) -> dict[str, Any]:
    """The listing of an opened :class:`.safe_h5.SafeH5` as plain types."""
    texts: Texts = {}
    for group in sorted(file.groups):
        for attribute in TEXT_ATTRIBUTES:
            try:
                found = file.texts(group, attribute)
            except UserError as error:  # for the one who asks for it
                found = str(error)
            if found is not None:
                texts.setdefault(group, {})[attribute] = found
    return dict(arrays=list(map(astuple, file.arrays.values())), groups=sorted(file.groups), texts=texts)
