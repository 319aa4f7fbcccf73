"""``.keras`` archives a stranger could hand to the importer; importing this module enters them in ``KINDS``."""
from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgdet_plugin.weights.container.zip_member import MEMBER
from tests.support.hostile_files import KINDS
from tests.support.keras_files import tiny_bytes

DAMAGED = 'damaged or encrypted .keras archive'


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    """Write an archive; a ``#`` in a member's name is left out, which allows two of one name."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', method) as archive:
        warnings.simplefilter('ignore')  # of a second member of one name
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name.replace('#', '')), content, compress_type=method)
    return bytearray(path.read_bytes())


def weights() -> bytes:
    """The HDF5 content of a valid archive."""
    with zipfile.ZipFile(io.BytesIO(tiny_bytes('keras3_model5.keras'))) as archive:
        return archive.read(MEMBER)


def enter_archive(name: str, members: Callable[[], dict[str, bytes]], cause: str, method: int = zipfile.ZIP_STORED,
                  change: Callable[[bytearray], Any] | None = None) -> None:
    """Enter an archive; ``change`` edits its bytes or returns others."""

    def make(path: Path) -> None:
        raw = zipped(path, members(), method)
        if change is not None:
            path.write_bytes(change(raw) or raw)

    KINDS[f'archive: {name}'] = (make, cause)


def put(place: Callable[[bytearray], int], value: bytes) -> Callable[[bytearray], None]:
    """Write a value over the bytes at a place."""

    def change(raw: bytearray) -> None:
        raw[place(raw):place(raw) + len(value)] = value

    return change


def local(field: int) -> Callable[[bytearray], int]:
    """Where a field of the member's own header lies."""
    return lambda raw: raw.find(MEMBER.encode()) - 30 + field


def directory_entry(field: int) -> Callable[[bytearray], int]:
    """Where a field of the member's entry in the table of contents lies."""
    return lambda raw: raw.rfind(MEMBER.encode()) - 46 + field


def one() -> dict[str, bytes]:
    """The members of a valid archive."""
    return {'config.json': b'{}', MEMBER: weights()}


enter_archive('no weights', lambda: {'config.json': b'{}'}, f'0 members named {MEMBER}')
enter_archive('two of them', lambda: {MEMBER: weights(), '#' + MEMBER: weights()}, f'2 members named {MEMBER}')
enter_archive('a path upwards', lambda: {f'../../{MEMBER}': weights()}, f'0 members named {MEMBER}')
enter_archive('an absolute path', lambda: {f'/{MEMBER}': weights()}, f'0 members named {MEMBER}')
enter_archive('text inside', lambda: {MEMBER: b'text'}, 'is not HDF5')
enter_archive('an archive inside', lambda: {MEMBER: tiny_bytes('keras3_model5.keras')}, 'is not HDF5')
enter_archive('another packing', lambda: {MEMBER: weights()}, 'compressed by method 14', zipfile.ZIP_LZMA)
enter_archive('bomb', lambda: {MEMBER: bytes(300 * 2 ** 20)}, 'claims 314,572,800 bytes', zipfile.ZIP_DEFLATED)
enter_archive('bomb with a small claim', lambda: {MEMBER: weights()[:8] + bytes(10 ** 7)}, DAMAGED,
              zipfile.ZIP_DEFLATED, put(directory_entry(24), struct.pack('<I', 10_000)))
enter_archive('a wrong checksum', one, DAMAGED, change=put(lambda raw: raw.find(weights()) + 5_000, b'\x77'))
enter_archive('encrypted', one, DAMAGED, change=put(directory_entry(8), b'\1'))
enter_archive('another local name', one, DAMAGED, change=put(local(30), b'M'))
enter_archive('another local size', one, DAMAGED, change=put(local(22), b'\0'))
enter_archive('another local method', one, DAMAGED, change=put(local(8), b'\x08'))
enter_archive('a name with NUL', lambda: {MEMBER + '!': weights()}, f'1 members named {MEMBER}',
              change=lambda raw: raw.replace(MEMBER.encode() + b'!', MEMBER.encode() + b'\0'))
enter_archive('overlapping members', lambda: {MEMBER: weights(), 'a' * 16: b''}, DAMAGED,
              change=put(lambda raw: raw.rfind(b'a' * 16) - 4, struct.pack('<I', 1000)))
enter_archive('something before it', one, DAMAGED, change=lambda raw: bytes(raw[:4]) + b'junk' + bytes(raw))
enter_archive('a comment', one, 'no table of contents at its end', change=lambda raw: bytes(raw) + b'comment')
enter_archive('a form for 4 GB', one, 'for more than 4 GB', change=lambda raw: (
    bytes(raw[:-22]) + b'PK\6\7' + bytes(16) + bytes(raw[-22:])))
enter_archive('many members', lambda: {f'{index:060}': b'' for index in range(9_000)}, 'table of contents of')
enter_archive('cut short', one, 'no table of contents at its end', change=lambda raw: bytes(raw[:-1000]))
