"""Read arrays from an HDF5 file that nobody vouches for, with h5py alone.

The structure is listed first without reading any data; an array is read only under the shape the caller needs. Links
other than hard ones, arrays kept outside the file, cycles and excessive structure are refused anywhere in the file.
Data types, filters and missing chunks are refused where an array is read, so that entries nobody reads (the state of
an optimizer) may be of any type.
"""
from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, Self

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s, h5t, h5z

from mgdet_plugin.errors import UserError

MAX_DEPTH = 8
MAX_OBJECTS = 10_000
MAX_NAMES = 10_000
MAX_NAME_BYTES = 1_024
MAX_CHUNKS = 10_000
MAX_CHUNK_BYTES = 64 * 2 ** 20

FLOATS = {
    'float16': (h5t.IEEE_F16LE, h5t.IEEE_F16BE),
    'float32': (h5t.IEEE_F32LE, h5t.IEEE_F32BE),
    'float64': (h5t.IEEE_F64LE, h5t.IEEE_F64BE),
}
PIPELINES = ((), (h5z.FILTER_DEFLATE,), (h5z.FILTER_SHUFFLE,), (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE))
READABLE = (*FLOATS, 'bfloat16')
TYPE_CLASSES = {h5t.INTEGER: 'integer', h5t.FLOAT: 'unusual float', h5t.STRING: 'string', h5t.OPAQUE: 'opaque',
                h5t.COMPOUND: 'compound', h5t.REFERENCE: 'reference', h5t.ENUM: 'enum', h5t.VLEN: 'variable-length',
                h5t.ARRAY: 'array', h5t.BITFIELD: 'bit field', h5t.TIME: 'time'}

# What h5py and its HDF5 library raise on damaged bytes; UserError, a ValueError, is let through by `damage_refused`.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError,
          OverflowError, MemoryError, zlib.error)


def quoted(text: str) -> str:
    """A name out of a file, safe to print: escaped, and cut to 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + '...')


@dataclass(frozen=True)
class StoredArray:
    """An array of the file, its data unread.

    Attributes:
        path: Absolute path in the file, such as ``/conv2d/conv2d/kernel:0``.
        shape: Declared shape, empty for a scalar (and for a null dataspace).
        dtype: One of :data:`READABLE`, or the name of a type that is never read, such as ``integer``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def damage_refused(name: str) -> Iterator[None]:
    """Turn whatever h5py raises on damaged bytes into one :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        cause = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(f'{name}: damaged or truncated HDF5 ({cause}); copy or download the file again') from error


class SafeH5:
    """An HDF5 file opened for reading under the rules of this module. Use as a context manager.

    Args:
        stream: Opened binary file, or bytes in memory; the caller closes it.
        name: What to call the file in messages.

    Attributes:
        arrays (dict[str, StoredArray]): Every dataset by its absolute path.
        groups (set[str]): Every group by its absolute path, the root being ``/``.

    Raises:
        UserError: The file is damaged or breaks a rule of structure.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self.arrays: dict[str, StoredArray] = {}
        self.groups = {'/'}
        with damage_refused(name):
            self._file = h5py.File(stream, 'r')
            try:
                self._list_arrays()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _list_arrays(self) -> None:
        """Fill ``arrays`` by a walk over hard links; each object may be reached once."""
        root = h5g.open(self._file.id, b'/')
        seen = {h5o.get_info(root).addr}
        stack = [(root, '', 1)]
        count = 0
        while stack:
            group, prefix, depth = stack.pop()
            count += group.get_num_objs()
            if count > MAX_OBJECTS:
                raise UserError(f'{self.name}: more than {MAX_OBJECTS:,} objects; no Keras weights file has so many')
            for path, link in self._links(group, prefix):
                info = h5o.get_info(group, link)
                if info.addr in seen:
                    raise UserError(f'{self.name}: {quoted(path)} leads to an object already reached by another name')
                seen.add(info.addr)
                if depth > MAX_DEPTH:
                    raise UserError(f'{self.name}: {quoted(path)} lies deeper than {MAX_DEPTH} levels')
                child = h5o.open(group, link)
                if isinstance(child, h5g.GroupID):
                    stack.append((child, path, depth + 1))
                    self.groups.add(path)
                elif isinstance(child, h5d.DatasetID):
                    self.arrays[path] = self._describe(child, path)
                else:
                    raise UserError(f'{self.name}: {quoted(path)} is neither a group nor an array')

    def _links(self, group: h5g.GroupID, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield (path, link name) of a group's members, having refused all but hard links."""
        names: list[bytes] = []
        group.links.iterate(names.append)
        for link in names:
            path = f'{prefix}/{link.decode()}'
            if len(link) > MAX_NAME_BYTES or b'/' in link or link in (b'', b'.', b'..'):
                raise UserError(f'{self.name}: bad name {quoted(path)}')
            if group.links.get_info(link).type != h5l.TYPE_HARD:
                raise UserError(f'{self.name}: {quoted(path)} is a soft, external or user-defined link; such links can '
                                'read other files and are refused')
            yield path, link

    def _describe(self, dataset: h5d.DatasetID, path: str) -> StoredArray:
        """Shape and type of a dataset, having refused data kept outside the file."""
        plist = dataset.get_create_plist()
        if plist.get_external_count() or plist.get_layout() == h5d.VIRTUAL:
            raise UserError(f'{self.name}: {quoted(path)} keeps its data in other files (external or virtual storage), '
                            'which is refused')
        space = dataset.get_space()
        shape = tuple(space.get_simple_extent_dims()) if space.get_simple_extent_type() == h5s.SIMPLE else ()
        return StoredArray(path, shape, self._dtype_name(dataset))

    def _dtype_name(self, dataset: h5d.DatasetID) -> str:
        stored = dataset.get_type()
        for name, candidates in FLOATS.items():
            if any(stored.equal(candidate) for candidate in candidates):
                return name
        kind = stored.get_class()
        if kind == h5t.OPAQUE and stored.get_size() == 2 and self._texts(dataset, 'dtype') == ['bfloat16']:
            return 'bfloat16'
        return TYPE_CLASSES.get(kind, 'unknown type')

    def _texts(self, owner: h5g.GroupID | h5d.DatasetID, attribute: str) -> list[str] | None:
        """A text attribute (one string or a list) as a list, None where it is absent."""
        attrs = (h5py.Dataset if isinstance(owner, h5d.DatasetID) else h5py.Group)(owner).attrs
        if attribute not in attrs:
            return None
        stored = attrs.get_id(attribute)
        count = prod(stored.shape) if stored.shape is not None else 0
        if count == 0:
            return []
        kind = stored.get_type()
        if count > MAX_NAMES or len(stored.shape) > 1 or kind.get_class() != h5t.STRING \
                or kind.get_size() > MAX_NAME_BYTES:
            raise UserError(f'{self.name}: the attribute {attribute!r} is not a list of at most {MAX_NAMES:,} names')
        texts = [value.decode() if isinstance(value, bytes) else str(value)
                 for value in np.atleast_1d(np.asarray(attrs[attribute], dtype=object))]
        if max(map(len, texts)) > MAX_NAME_BYTES:
            raise UserError(f'{self.name}: the attribute {attribute!r} holds a name longer than {MAX_NAME_BYTES:,}')
        return texts

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """A group's text attribute as a list of strings.

        Keras splits long lists over ``layer_names0``, ``layer_names1`` and so on; they come back joined.

        Args:
            group: Absolute path of the group, ``/`` for the root.
            attribute: Name of the attribute.

        Returns:
            The strings, or None where group or attribute are absent.
        """
        if group not in self.groups:
            return None
        with damage_refused(self.name):
            owner = h5g.open(self._file.id, group.encode())
            whole = self._texts(owner, attribute)
            if whole is not None:
                return whole
            parts: list[str] = []
            for index in range(MAX_NAMES):
                part = self._texts(owner, f'{attribute}{index}')
                if part is None:
                    return parts if index else None
                parts += part
            raise UserError(f'{self.name}: the attribute {attribute!r} comes in more than {MAX_NAMES:,} parts')

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
        stored = self.arrays[path]
        if stored.shape != shape:
            raise UserError(f'{self.name}: {quoted(path)} has the shape {stored.shape}, needed is {shape}')
        if stored.dtype not in READABLE:
            raise UserError(f'{self.name}: {quoted(path)} is of the type {stored.dtype}, weights are one of '
                            + ', '.join(READABLE))
        with damage_refused(self.name):
            dataset = h5o.open(self._file.id, path.encode())
            values = np.empty(shape, dataset.dtype)
            if dataset.get_create_plist().get_layout() == h5d.CHUNKED:
                self._read_chunks(dataset, path, values)
            else:
                if dataset.get_storage_size() != values.nbytes:
                    raise UserError(f'{self.name}: {quoted(path)} was never written in full')
                dataset.read(h5s.ALL, h5s.ALL, values)
        if stored.dtype == 'bfloat16':  # the upper half of a float32
            return (values.view('<u2').astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over='ignore'):  # an infinity is the caller's to refuse
            return values.astype(np.float32, copy=False)

    def _read_chunks(self, dataset: h5d.DatasetID, path: str, out: np.ndarray) -> None:
        """Fill ``out`` chunk by chunk; filters are undone here, under a cap, not by the HDF5 library."""
        plist = dataset.get_create_plist()
        filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
        if tuple(filters) not in PIPELINES:
            raise UserError(f'{self.name}: {quoted(path)} is stored with the HDF5 filters {filters}; only gzip (1), '
                            'shuffle (2) and shuffle before gzip are read')
        chunk = tuple(plist.get_chunk())
        chunk_bytes = prod(chunk) * out.itemsize
        grid = prod(-(-size // step) for size, step in zip(out.shape, chunk, strict=True))
        if grid > MAX_CHUNKS or chunk_bytes > MAX_CHUNK_BYTES:
            raise UserError(f'{self.name}: {quoted(path)} is cut into {grid:,} chunks of {chunk_bytes:,} bytes; at '
                            f'most {MAX_CHUNKS:,} of {MAX_CHUNK_BYTES:,} are read')
        stored: list[h5d.StoreInfo] = []
        if dataset.get_num_chunks() == grid:
            dataset.chunk_iter(stored.append)
        if len({info.chunk_offset for info in stored}) != grid:
            raise UserError(f'{self.name}: chunks of {quoted(path)} are missing; they were never written')
        for info in stored:
            if info.filter_mask or info.size > chunk_bytes + chunk_bytes // 8 + 1024:
                raise UserError(f'{self.name}: {quoted(path)} has a damaged chunk at {info.chunk_offset}')
            raw = dataset.read_direct_chunk(info.chunk_offset)[1]
            block = undo_filters(raw, filters, chunk_bytes, out.itemsize)
            region = tuple(slice(start, start + step) for start, step in zip(info.chunk_offset, chunk, strict=True))
            target = out[region]
            target[...] = np.frombuffer(block, out.dtype).reshape(chunk)[tuple(map(slice, target.shape))]


def undo_filters(raw: bytes, filters: list[int], size: int, item_size: int) -> bytes:
    """Bytes of a chunk as they were before the filters, at most ``size`` of them.

    Args:
        raw: The chunk as stored.
        filters: HDF5 filter numbers in the order of writing, one of :data:`PIPELINES`.
        size: Bytes the chunk must have.
        item_size: Bytes of one element.

    Raises:
        ValueError: The chunk comes out at another size.
    """
    for code in reversed(filters):
        if code == h5z.FILTER_DEFLATE:
            raw = zlib.decompressobj().decompress(raw, size + 1)
        elif len(raw) == size:  # shuffle: byte 0 of all elements, then byte 1, ...
            raw = np.frombuffer(raw, np.uint8).reshape(item_size, -1).T.tobytes()
    if len(raw) != size:
        raise ValueError(f'a chunk of {len(raw)} bytes where {size} belong')
    return raw
