"""Writing files: each whole or untouched, several as one; and how far reading or writing one has come."""
from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, BinaryIO, cast

from mgdet_plugin.common.errors import UserError

DELAY = 1.0  # seconds before a progress bar appears
LONGEST_PATH = 4096  # characters
WRITTEN_BY = 'give a .pth file that tools/import_keras.py or a training run wrote'
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
"""Those of mmdet's DetInferencer."""
_TEMPORARY = '.tmp'
_FULL = 2**20  # bytes free; what is written in blocks fails with a little left


class CountedStream:
    """An opened file that calls ``count`` with the bytes of every write, and remembers why a write failed."""

    def __init__(self, stream: BinaryIO, count: Callable[[int], object]) -> None:
        self._stream = stream
        self._count = count
        self.failure: OSError | None = None  # torch.save raises an error of its own that does not say why

    def write(self, content: Any) -> int:
        """Write bytes and count them."""
        try:
            written = self._stream.write(content)
        except OSError as error:
            self.failure = error
            raise
        self._count(written)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_destination(path: Path, *sources: Path) -> None:
    """Refuse a path nothing can be written to, before any work.

    Raises:
        UserError: The folder is missing or closed, the path is a folder, or it is one of the files that are read.
    """
    if not path.parent.is_dir():
        raise UserError(f'cannot write {path}: there is no folder {path.parent}; make it first')
    if path.is_dir():
        raise UserError(f'cannot write {path}: it is a folder; give the path of a file')
    if fault := _unwritable(path.parent):
        raise UserError(f'cannot write {path}: {fault} in {path.parent}; give another path')
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise UserError(f'cannot write {path}: it is the file to read from; give another path')


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def files_below(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files of a folder at any depth by their endings, hidden ones left out, each linked folder gone into once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        inside = sorted(name for name in folders if not name.startswith('.'))
        folders[:] = []
        for name in inside:
            real = os.path.realpath(os.path.join(place, name))
            if real not in seen:
                seen.add(real)
                folders.append(name)
        yield from (os.path.join(place, name) for name in files
                    if not name.startswith('.') and name.lower().endswith(suffixes))


def check_folder(folder: Path) -> Path:
    """Refuse a folder that cannot be made or written to, before any work; none is made.

    Raises:
        UserError: It cannot.
    """
    there = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise UserError(f'cannot make the folder {folder}: {there} is no folder; give another')
    if fault := _unwritable(there):
        raise UserError(f'cannot write to {folder}: {fault} in {there}; give another folder')
    return folder


def is_below(path: str | Path, folders: Iterable[str | Path]) -> bool:
    """Whether a path lies in one of some folders by what it says: ``..`` is taken off, links are followed by nobody.

    A link in a folder that a person gave is that person's; the path in a file is not.
    """
    place = os.path.abspath(path)
    roots = (os.path.abspath(folder).rstrip(os.sep) for folder in folders)
    return any(place == root or place.startswith(root + os.sep) for root in roots)


def make_folder(folder: Path) -> Path:
    """A folder to write to, made where it is not there.

    Raises:
        UserError: It cannot be made or written to.
    """
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {folder}: {error.strerror}; give another') from error
    return folder


def _unwritable(folder: Path) -> str:
    """Why no file can be made in a folder, found out by making one that has no name; '' where one can be."""
    try:
        with TemporaryFile(dir=folder):
            return ''
    except PermissionError:
        return 'no permission to write'
    except OSError as error:  # permissions say nothing of a file system such as /proc
        return f'no file can be made ({error.strerror})'


def write_together(writers: Mapping[Path, Callable[[BinaryIO], object]],
                   count: Callable[[int], object] = int) -> None:
    """Write several files so that each is whole or untouched, whenever the process is killed.

    All are written to temporary files beside them and synced before the first takes its place. Temporary files that
    killed processes left for the same names are removed.

    Args:
        writers: Path -> what writes its content to an opened file; the last path appears last.
        count: Called with the number of bytes of every write.

    Raises:
        UserError: A file cannot be written (a full disk, no permission).
    """
    staged: list[tuple[Path, Path]] = []
    path, counted = Path(), None
    try:
        for path, write in writers.items():
            remove_left_overs(path.parent, glob.escape(path.name))
            temporary = path.with_name(f'.{path.name}.{os.getpid()}{_TEMPORARY}')
            with temporary.open('wb') as stream:
                staged.append((temporary, path))
                counted = CountedStream(stream, count)
                write(cast(BinaryIO, counted))
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in staged:
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        cause = counted.failure if counted and counted.failure else error
        raise UserError(f'cannot write {path}: {getattr(cause, "strerror", None) or cause}; nothing was written, and '
                        'an earlier file of this name is as it was') from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder beside a file to come, for what libraries write by name; removed at the end.

    Raises:
        UserError: It cannot be made.
    """
    try:
        folder = TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}; give another path') from error
    with folder as name:
        yield Path(name)


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """Say of a library that fails while it writes beside ``path`` that the disk is full, where it is.

    Raises:
        UserError: It is; torch and OpenVINO raise errors of their own that do not say why.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or shutil.disk_usage(path.parent).free < _FULL:
            why = getattr(error, 'strerror', None) or os.strerror(errno.ENOSPC)
            raise UserError(f'cannot write {path}: {why}; nothing was written, and an earlier file of this name is as '
                            'it was') from error
        raise


def remove_left_overs(folder: Path, name: str = '*') -> None:
    """Remove the temporary files that :func:`write_together` left for a name where its process is gone.

    In a container every training may have the same number: one of this process's number was left by another.
    """
    for left in folder.glob(f'.{name}.*{_TEMPORARY}'):
        process = left.name.removesuffix(_TEMPORARY).rpartition('.')[2]
        if process.isdecimal() and left.is_file() and (
                int(process) == os.getpid() or not is_running(int(process))):
            left.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether there is a process of a number on this machine."""
    try:
        os.kill(process, 0)
    except OSError as error:  # other errors: it is another user's
        return not isinstance(error, ProcessLookupError)
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder outlast a power failure, where the file system can."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder one may write to but not list, and every folder on Windows
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def byte_progress(total: int, label: str) -> Any:
    """A context manager with ``update(bytes)``: a bar on standard error, after a second, and only on a terminal.

    Args:
        total: Bytes the job handles in all.
        label: What the job does.
    """
    from tqdm import tqdm  # a third of numpy's own time, and only jobs need it
    return tqdm(total=total, desc=label, unit='B', unit_scale=True, delay=DELAY, leave=False, file=sys.stderr,
                disable=not sys.stderr.isatty())
