"""Where an array lies in a file, and how its bytes become float32 numbers. No HDF5 library is needed for it.

The listing of a file (:mod:`.safe_h5`) says where the bytes are; here they are read and unpacked under caps.
"""
from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import numpy as np

from mgdet_plugin.common.errors import UserError

DEFLATE, SHUFFLE = 1, 2  # numbers of HDF5 filters
PIPELINES = ((), (DEFLATE,), (SHUFFLE,), (SHUFFLE, DEFLATE))
READABLE = {'float16': 'f2', 'float32': 'f4', 'float64': 'f8', 'bfloat16': 'u2'}
"""Types that are read -> the numpy type of their bytes."""
MAX_CHUNKS = 10_000
MAX_CHUNK_BYTES = 64 * 2 ** 20
MAX_EXPANSION = 20      # weights hardly compress

# What h5py, its HDF5 library, zlib and zipfile raise on damaged bytes; UserError, a ValueError, is let through.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError,
          OverflowError, MemoryError, EOFError, zlib.error, zipfile.BadZipFile, struct.error)


def quoted(text: str) -> str:
    """A name out of a file, safe to print: escaped, and cut to 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + '...')


@contextmanager
def damage_refused(name: str, what: str = 'damaged or truncated HDF5', again: str = 'the file') -> Iterator[None]:
    """Turn whatever is raised on damaged bytes into one :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        cause = repr(' '.join(str(error).split())[:160])[1:-1] or type(error).__name__
        raise UserError(f'{name}: {what} ({cause}); copy or download {again} again') from error


@dataclass(frozen=True)
class Piece:
    """Bytes of an array, in one piece."""

    address: int  # first byte in the file
    size: int  # bytes as stored
    start: tuple[int, ...] = ()  # index of its first element in the array, () where it is the whole array
    mask: int = 0  # filters that were left out when it was written, one a bit


@dataclass(frozen=True)
class Storage:
    """How an array is stored."""

    order: str  # of bytes, ``<`` or ``>``; '' where it does not matter
    blocks: tuple[Piece, ...] = ()  # one, or all chunks
    chunk: tuple[int, ...] | None = None  # shape of a chunk, None for an array in one piece
    filters: tuple[int, ...] = ()  # numbers of the HDF5 filters, in the order of writing


@dataclass(frozen=True)
class StoredArray:
    """An array of the file, its data unread."""

    path: str  # absolute, such as ``/conv2d/conv2d/kernel:0``
    shape: tuple[int, ...]  # declared; empty for a scalar (and for a null dataspace)
    dtype: str  # one of :data:`READABLE`, or the name of a type that is never read, such as ``integer``
    storage: Storage = field(default=Storage(''), compare=False, repr=False)


class ArrayReader:
    """What reads the arrays of a listed file.

    Attributes:
        name: What to call the file in messages.
        arrays (dict[str, StoredArray]): Every array by its absolute path.
        groups (set[str]): Every group by its absolute path, the root being ``/``.
    """

    def __init__(self, stream: io.RawIOBase, name: str) -> None:
        self.name = name
        self.arrays: dict[str, StoredArray] = {}
        self.groups = {'/'}
        self._stream = stream
        self._order: tuple[str, str] | None = None  # of the first array read, with its path
        self._budget = MAX_EXPANSION * stream.seek(0, os.SEEK_END) + 2 ** 20  # bytes that may still be read

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read one array.

        Args:
            path: Absolute path, a key of ``arrays``.
            shape: The shape the caller needs; any other is refused before a byte is read.

        Returns:
            float32 array of ``shape``, C order, native byte order.

        Raises:
            UserError: Shape, type, filter or storage are not as they must be.
        """
        array = self.arrays[path]
        if array.shape != shape:
            raise UserError(f'{self.name}: {quoted(path)} has the shape {array.shape}, needed is {shape}')
        if array.dtype not in READABLE:
            hint = '; bfloat16 without its type, which Keras cannot load either? save it as float32'
            raise UserError(f'{self.name}: {quoted(path)} is of the type {array.dtype}, weights are one of '
                            + ', '.join(READABLE) + hint * (array.dtype == 'opaque'))
        order = array.storage.order
        if order:
            self._order = self._order or (order, path)
            if order != self._order[0]:
                raise UserError(f'{self.name}: {quoted(path)} has another byte order than {quoted(self._order[1])}; '
                                'Keras writes one in a file, so a flag is damaged; copy or download the file again')
        stored_type = np.dtype((order or '<') + READABLE[array.dtype])
        size = prod(shape) * stored_type.itemsize
        if array.storage.chunk is None and [block.size for block in array.storage.blocks if block.size] != [size] * (
                size > 0):
            raise UserError(f'{self.name}: {quoted(path)} was never written in full')
        self._budget -= size
        if self._budget < 0:
            raise UserError(f'{self.name}: {quoted(path)} would take {size:,} bytes, more than a file of this size '
                            'holds; the file is damaged or made to fill the memory')
        with damage_refused(self.name):
            values = np.empty(shape, stored_type)
            if array.storage.chunk is None:
                for block in array.storage.blocks:
                    self._read_into(block.address, values.reshape(-1).view(np.uint8).data)
            else:
                self._read_chunks(array, array.storage.chunk, values)
        if array.dtype == 'bfloat16':  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over='ignore', invalid='ignore'):  # an infinity is the caller's to refuse
            return values.astype(np.float32, copy=False)

    def _read_into(self, address: int, out: memoryview) -> None:
        self._stream.seek(address)
        if self._stream.readinto(out) != len(out):
            raise ValueError(f'{len(out):,} bytes at {address:,} reach beyond the end')

    def _read_chunks(self, array: StoredArray, chunk: tuple[int, ...], out: np.ndarray) -> None:
        """Fill ``out`` chunk by chunk, having checked that the chunks are exactly those of its shape."""
        path, filters = array.path, array.storage.filters
        if filters not in PIPELINES:
            raise UserError(f'{self.name}: {quoted(path)} is stored with the HDF5 filters {list(filters)}; only gzip '
                            '(1), shuffle (2) and shuffle before gzip are read')
        chunk_bytes = prod(chunk) * out.itemsize
        grid = [range(0, size, step) for size, step in zip(out.shape, chunk, strict=True)]
        count = prod(map(len, grid))
        if count > MAX_CHUNKS or chunk_bytes > MAX_CHUNK_BYTES:
            raise UserError(f'{self.name}: {quoted(path)} is cut into {count:,} chunks of {chunk_bytes:,} bytes; at '
                            f'most {MAX_CHUNKS:,} of {MAX_CHUNK_BYTES:,} are read')
        starts = {block.start for block in array.storage.blocks}
        if len(array.storage.blocks) != count or len(starts) != count:
            raise UserError(f'{self.name}: chunks of {quoted(path)} are missing; they were never written')
        for block in array.storage.blocks:
            fits = all(index in steps for index, steps in zip(block.start, grid, strict=True))
            if block.mask or not fits or block.size > chunk_bytes + chunk_bytes // 8 + 1024:
                raise UserError(f'{self.name}: {quoted(path)} has a damaged chunk at {block.start}')
            raw = bytearray(block.size)
            self._read_into(block.address, memoryview(raw))
            values = np.frombuffer(undo_filters(raw, filters, chunk_bytes, out.itemsize), out.dtype).reshape(chunk)
            target = out[tuple(slice(start, start + step) for start, step in zip(block.start, chunk, strict=True))]
            target[...] = values[tuple(map(slice, target.shape))]


def undo_filters(raw: bytes | bytearray, filters: Sequence[int], size: int, item_size: int) -> bytes | bytearray:
    """Bytes of a chunk as they were before the filters (HDF5's numbers, in the order of writing), ``size`` of them.

    Raises:
        ValueError: The chunk comes out at another size, or its checksum is missing.
    """
    whole = True
    for code in reversed(filters):
        if code == DEFLATE:
            inflate = zlib.decompressobj()
            raw = inflate.decompress(raw, size + 1)
            whole = inflate.eof
        elif len(raw) == size:  # shuffle: byte 0 of all elements, then byte 1, ...
            raw = np.frombuffer(raw, np.uint8).reshape(item_size, -1).T.tobytes()
    if len(raw) != size:
        raise ValueError(f'a chunk of {len(raw)} bytes where {size} belong')
    if not whole:
        raise ValueError('a packed chunk without its end')
    return raw
