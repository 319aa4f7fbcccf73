"""List an HDF5 file that nobody vouches for, with h5py alone, and read arrays from it.

The structure is listed first without reading any data; an array is read only under the shape the caller needs. Links
other than hard ones, arrays kept outside the file, arrays that overlap, cycles and excessive structure are refused
anywhere in the file. Data types, filters and missing chunks are refused where an array is read, so that entries nobody
reads (the state of an optimizer) may be of any type.

The HDF5 library is C code and may crash on damaged bytes: :mod:`.reader_process` runs this module in a process of its
own.
"""
from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from typing import Any, BinaryIO, Self, cast

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.stored_array import ArrayReader, Piece, Storage, StoredArray, damage_refused, quoted

MAX_DEPTH = 8
MAX_OBJECTS = 10_000
MAX_RANK = 8            # a kernel has rank 4
MAX_NAMES = 10_000
MAX_NAME_BYTES = 1_024
MAX_ALL_NAMES = 4 * 2 ** 20   # characters of all paths; 330 KB in a training file
MAX_ALL_CHUNKS = 100_000
MIN_HEADER_BYTES = 16  # of an object; 16 is the prefix of the older form

FLOATS = {
    'float16': (h5t.IEEE_F16LE, h5t.IEEE_F16BE),
    'float32': (h5t.IEEE_F32LE, h5t.IEEE_F32BE),
    'float64': (h5t.IEEE_F64LE, h5t.IEEE_F64BE),
}
TYPE_CLASSES = {h5t.INTEGER: 'integer', h5t.FLOAT: 'unusual float', h5t.STRING: 'string', h5t.OPAQUE: 'opaque',
                h5t.COMPOUND: 'compound', h5t.REFERENCE: 'reference', h5t.ENUM: 'enum', h5t.VLEN: 'variable-length',
                h5t.ARRAY: 'array', h5t.BITFIELD: 'bit field', h5t.TIME: 'time'}


class SafeH5(ArrayReader):
    """An HDF5 file opened for reading under the rules of this module. Use as a context manager.

    Args:
        stream: Opened binary file, or bytes in memory; the caller closes it.
        name: What to call the file in messages.

    Raises:
        UserError: The file is damaged or breaks a rule of structure.
    """

    def __init__(self, stream: BinaryIO | io.RawIOBase, name: str) -> None:
        super().__init__(cast(io.RawIOBase, stream), name)
        self._headers: list[tuple[int, int]] = []  # first byte and end, of all objects
        self._chunks = self._characters = 0
        with damage_refused(name):
            self._file = h5py.File(stream, 'r')
            try:
                self._list_arrays()
                self._check_places()
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
        seen = {self._note_header(h5o.get_info(root))}
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
                seen.add(self._note_header(info))
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

    def _note_header(self, info: Any) -> int:
        """Remember where the header of an object lies, as far as it is in one piece; its address."""
        size = info.hdr.space.total if info.hdr.nchunks == 1 else MIN_HEADER_BYTES
        self._headers.append((info.addr, info.addr + size))
        return int(info.addr)

    def _check_places(self) -> None:
        """Refuse arrays that reach beyond the file, or that overlap each other or the header of an object.

        The older format has no checksums, so that an array whose address is damaged would read other bytes as numbers.
        """
        size = self._stream.seek(0, os.SEEK_END)
        blocks = [(block.address, block.address + block.size) for array in self.arrays.values()
                  for block in array.storage.blocks if block.size]
        for start, end in blocks:
            if end > size:
                raise UserError(f'{self.name}: damaged or truncated HDF5 (an array at the bytes {start:,} to {end:,} '
                                f'of a file of {size:,}); copy or download the file again')
        for (_, end), (start, _) in pairwise(sorted([*self._headers, *blocks])):
            if start < end:
                raise UserError(f'{self.name}: damaged HDF5 (two parts of it overlap at byte {start:,}); copy or '
                                'download the file again')

    def _links(self, group: h5g.GroupID, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield (path, link name) of a group's members, having refused all but hard links."""
        names: list[bytes] = []

        def collect(link: bytes) -> bool:
            names.append(link)
            return len(names) > MAX_OBJECTS  # ends the iteration: a damaged index may list more than it counts

        group.links.iterate(collect)
        for link in names:
            path = f'{prefix}/{link.decode()}'
            if len(link) > MAX_NAME_BYTES or b'/' in link or link in (b'', b'.', b'..'):
                raise UserError(f'{self.name}: bad name {quoted(path)}')
            self._characters += len(path)
            if self._characters > MAX_ALL_NAMES or len(names) > MAX_OBJECTS:
                raise UserError(f'{self.name}: a listing of more than {MAX_ALL_NAMES:,} characters or {MAX_OBJECTS:,} '
                                'objects; no Keras weights file has so many')
            if group.links.get_info(link).type != h5l.TYPE_HARD:
                raise UserError(f'{self.name}: {quoted(path)} is a soft, external or user-defined link; such links can '
                                'read other files and are refused')
            yield path, link

    def _describe(self, dataset: h5d.DatasetID, path: str) -> StoredArray:
        """Shape, type and place of a dataset, having refused data kept outside the file."""
        plist = dataset.get_create_plist()
        if plist.get_external_count() or plist.get_layout() == h5d.VIRTUAL:
            raise UserError(f'{self.name}: {quoted(path)} keeps its data in other files (external or virtual storage), '
                            'which is refused')
        space = dataset.get_space()
        if space.get_simple_extent_ndims() > MAX_RANK:
            raise UserError(f'{self.name}: {quoted(path)} has {space.get_simple_extent_ndims()} axes; weights have at '
                            f'most 4, {MAX_RANK} are accepted')
        shape = tuple(space.get_simple_extent_dims()) if space.get_simple_extent_type() == h5s.SIMPLE else ()
        dtype, order = self._dtype(dataset)
        return StoredArray(path, shape, dtype, self._storage(dataset, plist, path, order))

    def _dtype(self, dataset: h5d.DatasetID) -> tuple[str, str]:
        """Name of the data type and, for floats, the byte order."""
        stored = dataset.get_type()
        for name, candidates in FLOATS.items():
            for order, candidate in zip('<>', candidates, strict=True):
                if stored.equal(candidate):
                    return name, order
        kind = stored.get_class()
        if kind == h5t.OPAQUE and stored.get_size() == 2 and self._texts(dataset, 'dtype') == ['bfloat16']:
            return 'bfloat16', ''
        return TYPE_CLASSES.get(kind, 'unknown type'), ''

    def _storage(self, dataset: h5d.DatasetID, plist: h5py.h5p.PropDCID, path: str, order: str) -> Storage:
        """Where a dataset's bytes lie, all of them within the file."""
        layout, address = plist.get_layout(), dataset.get_offset()
        if layout != h5d.CHUNKED:  # a compact one, inside its header, is never read: Keras writes none
            size = dataset.get_storage_size()
            return Storage(order, () if layout != h5d.CONTIGUOUS or address is None else (Piece(address, size),))
        count = dataset.get_num_chunks()
        self._chunks += count
        if self._chunks > MAX_ALL_CHUNKS:
            raise UserError(f'{self.name}: arrays cut into more than {MAX_ALL_CHUNKS:,} chunks')
        blocks: list[Piece] = []

        def collect(info: h5d.StoreInfo) -> None:
            if len(blocks) > count:
                raise ValueError('more chunks than counted')
            blocks.append(Piece(info.byte_offset, info.size, tuple(info.chunk_offset), info.filter_mask))

        dataset.chunk_iter(collect)
        filters = tuple(plist.get_filter(index)[0] for index in range(plist.get_nfilters()))
        return Storage(order, tuple(blocks), tuple(plist.get_chunk()), filters)

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
            if not h5a.get_num_attrs(owner):
                return None
            whole = self._texts(owner, attribute)
            if whole is not None:
                return whole
            parts: list[str] = []
            for index in range(MAX_NAMES):
                part = self._texts(owner, f'{attribute}{index}')
                if part is None:
                    return parts if index else None
                parts += part
                if len(parts) > MAX_NAMES:
                    break
            raise UserError(f'{self.name}: the attribute {attribute!r} comes in too many parts or names')
