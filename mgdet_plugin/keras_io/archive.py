"""From a path to an opened weights file: plain HDF5, or the weights inside a ``.keras`` archive.

Of an archive only the member ``model.weights.h5`` is read, in memory and under a cap; ``config.json``, from which
Keras would build objects, is never opened.
"""
from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.safe_h5 import SafeH5, quoted

HDF5_MAGIC = b'\x89HDF\r\n\x1a\n'
ZIP_MAGIC = b'PK\x03\x04'
MEMBER = 'model.weights.h5'
MAX_MEMBER_BYTES = 2 ** 30      # a training checkpoint of the full network with Adam's moments takes 540 MB
MAX_EXPANSION = 20              # weights hardly compress
MAX_DIRECTORY_BYTES = 2 ** 20
BLOCK_BYTES = 2 ** 20


class WeightsFile(SafeH5):
    """A weights file with where it came from.

    Attributes:
        container: ``HDF5`` or ``.keras archive``.
        sha256: Hex digest of the whole file.
        size: Bytes of the whole file.
    """

    def __init__(self, stream: BinaryIO, name: str, container: str, sha256: str, size: int) -> None:
        super().__init__(stream, name)
        self.container = container
        self.sha256 = sha256
        self.size = size


@contextmanager
def open_weights(path: str | Path) -> Iterator[WeightsFile]:
    """Open a Keras weights file.

    Args:
        path: ``.h5``, ``.weights.h5`` or ``.keras`` file; told apart by content, not by name.

    Raises:
        UserError: The path is no regular readable file, or its content is neither HDF5 nor a ``.keras`` archive.
    """
    path = Path(path)
    name = str(path)
    if path.is_dir():
        raise UserError(f'{name} is a directory; give the path of a Keras weights file (.h5, .weights.h5 or .keras)')
    if not path.exists():
        raise UserError(f'{name} does not exist; give the path of a Keras weights file (.h5, .weights.h5 or .keras)')
    if not path.is_file():
        raise UserError(f'{name} is not a regular file')
    try:
        stream = path.open('rb')
    except OSError as error:
        raise UserError(f'{name} cannot be opened: {error.strerror}') from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(40)
        source: BinaryIO = stream
        if start.startswith(ZIP_MAGIC):
            source = io.BytesIO(archive_member(stream, name))
        elif not start.startswith(HDF5_MAGIC):
            raise UserError(f'{name} is not a Keras weights file: {describe_content(start, size)}')
        container = 'HDF5' if source is stream else '.keras archive'
        with WeightsFile(source, name, container, sha256_of(stream), size) as weights:
            yield weights


def describe_content(start: bytes, size: int) -> str:
    """What a file that is neither HDF5 nor zip seems to be, from its first bytes."""
    if not size:
        return 'it is empty (0 bytes)'
    if all(byte in b'\t\r\n' or byte >= 32 for byte in start):
        text = start.decode(errors='replace').split('\n', maxsplit=1)[0]
        return f'it is text beginning {quoted(text)} (an error page or a pointer saved in place of the file?)'
    return f'it begins with the bytes {start[:8].hex(" ")}; expected HDF5 (.h5, .weights.h5) or .keras'


def sha256_of(stream: BinaryIO) -> str:
    """Hex digest of an opened file, from its beginning."""
    digest = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def archive_member(stream: BinaryIO, name: str) -> bytes:
    """The bytes of ``model.weights.h5`` out of a ``.keras`` archive.

    Args:
        stream: The opened archive.
        name: What to call the file in messages.

    Raises:
        UserError: The archive is damaged, lacks the member, holds it twice, or the member breaks the cap.
    """
    check_directory(stream, name)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = [info for info in archive.infolist() if info.filename == MEMBER]
            if len(members) != 1:
                torch_file = any(info.filename.endswith('data.pkl') for info in archive.infolist())
                raise UserError(f'{name}: {len(members)} members named {MEMBER} in this archive, a .keras file has one'
                                + ('; it looks like a PyTorch checkpoint, which needs no import' if torch_file else ''))
            info = members[0]
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f'{name}: {MEMBER} is compressed by method {info.compress_type}; only deflate is read')
            cap = min(MAX_MEMBER_BYTES, MAX_EXPANSION * info.compress_size)
            if info.file_size > cap:
                raise UserError(f'{name}: {MEMBER} claims {info.file_size:,} bytes, at most {cap:,} are accepted')
            with archive.open(info) as member:
                content = member.read(info.file_size + 1)
                if len(content) != info.file_size or member.read(1):
                    raise UserError(f'{name}: {MEMBER} is not of the {info.file_size:,} bytes the archive states')
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError,
            struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{name}: damaged or encrypted .keras archive ({error}); copy or download it again') from error
    if not content.startswith(HDF5_MAGIC):
        raise UserError(f'{name}: {MEMBER} inside it is not HDF5')
    return content


def check_directory(stream: BinaryIO, name: str) -> None:
    """Refuse a zip whose table of contents is missing or too large, before :mod:`zipfile` reads it whole."""
    tail_bytes = 22 + 65_535  # the end record and its longest comment
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - tail_bytes))
    tail = stream.read(tail_bytes)
    at = tail.rfind(b'PK\x05\x06')
    if at < 0 or len(tail) < at + 22:
        raise UserError(f'{name}: truncated .keras archive (no table of contents); copy or download it again')
    directory_bytes = int.from_bytes(tail[at + 12:at + 16], 'little')
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise UserError(f'{name}: a table of contents of {directory_bytes:,} bytes; a .keras archive has three members')
