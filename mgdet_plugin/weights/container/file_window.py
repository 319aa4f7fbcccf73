"""Parts of an opened file as files of their own, and the digest of a file taken while others read it."""
from __future__ import annotations

import hashlib
import io
import os
from threading import Event, Lock, Thread
from typing import Any, Self

BLOCK_BYTES = 2 ** 20


class FileWindow(io.RawIOBase):
    """A part of an opened file as a file of its own, with its own position.

    Args:
        stream: Opened file; reading here does not move its position where the system has ``preadv``.
        offset: First byte of the part.
        size: Bytes of the part.
    """

    def __init__(self, stream: io.FileIO, offset: int, size: int) -> None:
        self.stream = stream
        self._lock = Lock()
        self._position = 0
        self.offset, self.size = offset, size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; it may lie beyond the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on, as far as the part reaches."""
        view = memoryview(buffer).cast('B')
        count = max(0, min(len(view), self.size - self._position))
        done = 0
        while done < count:
            got = self._read_at(view[done:count], self.offset + self._position + done)
            if not got:
                break
            done += got
        self._position += done
        return done

    def _read_at(self, view: memoryview, offset: int) -> int:
        if hasattr(os, 'preadv'):
            return os.preadv(self.stream.fileno(), [view], offset)
        with self._lock:
            self.stream.seek(offset)
            return self.stream.readinto(view) or 0


class Digest:
    """SHA-256 of a file, computed in a thread of its own from the moment it is made. Use as a context manager.

    Args:
        source: The file; this window must be read by nobody else.
    """

    def __init__(self, source: FileWindow) -> None:
        self._source = source
        self._stop = Event()
        self._result: str | OSError = ''
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        digest, block = hashlib.sha256(), bytearray(BLOCK_BYTES)
        try:
            while not self._stop.is_set() and (count := self._source.readinto(block)):
                digest.update(memoryview(block)[:count])
            self._result = digest.hexdigest()
        except OSError as error:
            self._result = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until it is whole, while the file is open; end early where the block was left by an error."""
        if kind is None:
            self.hex()
        self._stop.set()
        self._thread.join()

    def hex(self) -> str:
        """The hex digest, waiting until it is whole.

        Raises:
            OSError: The file could not be read.
        """
        self._thread.join()
        if isinstance(self._result, OSError):
            raise self._result
        return self._result
