"""Writing files: each whole or untouched, several as one."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from mgdet_plugin.errors import UserError


class CountedStream:
    """An opened file that counts what is written to it.

    Args:
        stream: The file.
        count: Called with the number of bytes of every write.
    """

    def __init__(self, stream: BinaryIO, count: Callable[[int], object]) -> None:
        self._stream = stream
        self._count = count

    def write(self, content: Any) -> int:
        """Write bytes and count them."""
        written = self._stream.write(content)
        self._count(written)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def check_destination(path: Path, source: Path) -> None:
    """Refuse a path nothing can be written to, before any work.

    Raises:
        UserError: The folder is missing or closed, the path is a folder, or it is the file that is read.
    """
    if not path.parent.is_dir():
        raise UserError(f'cannot write {path}: there is no folder {path.parent}; make it first')
    if path.is_dir():
        raise UserError(f'cannot write {path}: it is a folder; give the path of a file')
    if not os.access(path.parent, os.W_OK):
        raise UserError(f'cannot write {path}: no permission to write in {path.parent}')
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f'cannot write {path}: it is the file to read from; give another path')


def write_together(writers: Mapping[Path, Callable[[BinaryIO], object]],
                   count: Callable[[int], object] = int) -> None:
    """Write several files so that each is whole or untouched.

    All are written to temporary files beside them and synced before the first takes its place.

    Args:
        writers: Path -> what writes its content to an opened file; the last path appears last.
        count: Called with the number of bytes of every write.

    Raises:
        UserError: A file cannot be written (a full disk, no permission).
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, write in writers.items():
            temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
            with temporary.open('wb') as stream:
                staged.append((temporary, path))
                write(cast(BinaryIO, CountedStream(stream, count)))
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in staged:
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        raise UserError(f'cannot write {path}: {error}; nothing was written') from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
