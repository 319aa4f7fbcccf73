"""A map of an HDF5 file: every byte belongs to one array or one piece of structure, or is free.

The older format, which Keras writes, has no checksums: an array whose address is damaged reads other bytes of the file
as numbers. Its files are laid out without waste, though. Such an array overlaps something, or it lies in free bytes,
which a file written in one go has as zeros, and leaves its own bytes as data that belongs to nothing. In a file that
was edited (an optimizer deleted, layers renamed) data belongs to nothing too, but no array fits it; that is let through
with a warning, see :mod:`.file_gaps`. Sections in this module are those of the HDF5 File Format Specification 3.0. What
it does not follow (dense storage, newer indexes) carries checksums; there only overlaps are looked for.
"""
from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.file_gaps import Gap, find_gap, seems_moved
from mgdet_plugin.weights.container.stored_array import Block

UNDEFINED = 2 ** 64 - 1
NIL, DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK, LAYOUT, GROUP_INFO, FILTERS, ATTRIBUTE = (
    0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12)
CONTINUATION, SYMBOL_TABLE, MODIFIED, ATTRIBUTE_INFO = 16, 17, 18, 21
ARRAY_MESSAGES = {NIL, DATASPACE, DATATYPE, OLD_FILL, FILL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, MODIFIED,
                  ATTRIBUTE_INFO}
GROUP_MESSAGES = {NIL, LINK_INFO, LINK, GROUP_INFO, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, MODIFIED, ATTRIBUTE_INFO}
REPEATED = {NIL, LINK, ATTRIBUTE, CONTINUATION}
CHUNK_TREE_RANK = 32            # half the entries of a node in an index of chunks
VARIABLE_LENGTH = 9             # class of a data type
MAX_PIECES = 200_000            # of structure; a training file has 8,000
MAX_TEXT_BYTES = 2 ** 20        # of one list of names
MAX_FREE = 2 ** 30              # bytes between the pieces; files have 10 KB, edited ones what was deleted


def number(raw: bytes, at: int, size: int) -> int:
    """An unsigned little-endian number; beyond the end is an error, not zero."""
    if at + size > len(raw):
        raise ValueError('a piece of structure ends too early')
    return int.from_bytes(raw[at:at + size], 'little')


def check_file_map(stream: io.RawIOBase, headers: Iterable[int], blocks: Iterable[Block], name: str) -> list[str]:
    """Hold the places of all arrays against the file and against each other.

    Args:
        stream: The opened file.
        headers: Addresses of the headers of all objects.
        blocks: Where the bytes of all arrays lie.
        name: What to call the file in messages.

    Returns:
        One line where data belongs to nothing, as in a file that was edited.

    Raises:
        UserError: An array reaches beyond the file, two pieces overlap, or an array seems to lie elsewhere than stated.
        ValueError: The structure cannot be followed.
    """
    file_map = FileMap(stream)
    blocks = list(blocks)
    arrays = [(block.address, block.address + block.size) for block in blocks if block.size]
    for start, end in arrays:
        if end > file_map.size:
            raise UserError(f'{name}: damaged or truncated HDF5 (an array at the bytes {start:,} to {end:,} of a file '
                            f'of {file_map.size:,}); copy or download the file again')
    file_map.follow(headers)
    position = free = 0
    gaps: list[Gap] = []
    for start, end in [*sorted([*file_map.spans, *arrays]), (file_map.size, file_map.size)]:
        if start < position:
            raise UserError(f'{name}: damaged HDF5 (two parts of it overlap at byte {start:,}); copy or download the '
                            'file again')
        free += start - position
        if free > MAX_FREE:
            raise UserError(f'{name}: more than {MAX_FREE:,} bytes of the file belong to nothing; save it again from '
                            'Keras')
        if file_map.complete:
            gaps += file_map.gaps(position, start)
        position = end
    for gap in gaps:
        misplaced = next((block for block in blocks if seems_moved(file_map.read, block, gap)), None)
        if misplaced is not None:
            raise UserError(f'{name}: damaged HDF5 (the array at byte {misplaced.address:,} seems to lie at byte '
                            f'{gap.data_start:,}, whose data belongs to nothing, so its address is wrong); copy or '
                            'download it again, or save it again from Keras')
    orphaned = sum(gap.data_end - gap.data_start for gap in gaps)
    return [f'{orphaned:,} bytes of data belong to nothing in the file: it was edited after it was written, or is '
            'damaged; python tools/verify_import.py SRC OUT.pth --with-keras compares the outputs'] if gaps else []


class FileMap:
    """Where the structure of an HDF5 file lies.

    Args:
        stream: The opened file, beginning with an HDF5 superblock.

    Attributes:
        size: Bytes of the file.
        spans: First byte and end of every piece of structure.
        complete: Whether all of the structure is among them.
    """

    def __init__(self, stream: io.RawIOBase) -> None:
        self._stream = stream
        self.size = stream.seek(0, os.SEEK_END)
        self.spans: set[tuple[int, int]] = set()
        self.complete = True
        self._group_rank, self._leaf_rank = 16, 4
        version = self.read(8, 1)[0]  # section II
        if version <= 1:
            start = self.read(0, 24)
            self._leaf_rank, self._group_rank = number(start, 16, 2), number(start, 18, 2)
            self._claim(0, 96 + 4 * version)
            if start[13:15] != b'\x08\x08':
                raise ValueError('addresses are not of 8 bytes')
        else:
            self._claim(0, 48)
            self.complete = self.read(20, 8) == b'\xff' * 8  # no extension

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the file.

        Raises:
            ValueError: They reach beyond its end.
        """
        if address + size > self.size:
            raise ValueError(f'structure at the bytes {address:,} to {address + size:,} of {self.size:,}')
        self._stream.seek(address)
        return self._stream.read(size) or b''

    def _claim(self, address: int, size: int, signature: bytes = b'') -> bytes:
        """Enter a piece of structure and return its bytes."""
        span = (address, address + size)
        if span in self.spans or len(self.spans) > MAX_PIECES:
            raise ValueError(f'structure at byte {address:,} is used twice')
        self.spans.add(span)
        raw = self.read(address, size)
        if not raw.startswith(signature):
            raise ValueError(f'no {signature.decode()} at byte {address:,}')
        return raw

    def gaps(self, start: int, end: int) -> Iterator[Gap]:
        """Gaps with data between two addresses; heaps of texts (section III.E) belong to attributes and part them."""
        while (gap := find_gap(self.read, start, end)) is not None:
            heap = self.read(gap.data_start, min(16, self.size - gap.data_start))
            heap_end = gap.data_start + number(heap, 8, 8) if heap[:4] == b'GCOL' and len(heap) == 16 else 0
            if not gap.data_start + 16 <= heap_end <= end:
                yield gap
                return
            start = heap_end

    def follow(self, headers: Iterable[int]) -> None:
        """Enter all structure that the objects with these headers have."""
        for address in headers:
            if self.read(address, 4) == b'OHDR':
                self._newer_header(address)
            else:
                self._header(address)

    def _header(self, address: int) -> None:
        """Section IV.A.1.a, version 1: no checksum, so that its messages must be those an object has."""
        prefix = self.read(address, 16)
        if prefix[0] != 1:
            raise ValueError(f'no object header at byte {address:,}')
        messages: list[tuple[int, bytes]] = []
        blocks = [self._claim(address, 16 + number(prefix, 8, 4))[16:]]
        while blocks:
            raw, at = blocks.pop(), 0
            while at + 8 <= len(raw):
                kind, size, shared = number(raw, at, 2), number(raw, at + 2, 2), raw[at + 4] & 2
                data = raw[at + 8:at + 8 + size]
                at += 8 + size
                messages.append((kind, data))
                if shared or len(data) < size:
                    raise ValueError(f'a damaged message in the header at byte {address:,}')
                if kind == CONTINUATION:
                    blocks.append(self._claim(number(data, 0, 8), number(data, 8, 8)))
        counts = Counter(kind for kind, _ in messages)
        allowed = ARRAY_MESSAGES if LAYOUT in counts else GROUP_MESSAGES
        # A group keeps the bytes of attributes that were deleted; an array would lose a filter by a damaged byte.
        if LAYOUT in counts and any(kind == NIL and data.strip(b'\0') for kind, data in messages):
            raise ValueError(f'a message was struck out in the header of the array at byte {address:,}')
        if len(messages) != number(prefix, 2, 2) or set(counts) - allowed or any(
                count > 1 for kind, count in counts.items() if kind not in REPEATED):
            raise ValueError(f'unusual messages in the header at byte {address:,}')
        self._messages(messages)

    def _newer_header(self, address: int) -> None:
        """Section IV.A.1.b, version 2: HDF5 itself checks its checksum."""
        flags = self.read(address, 6)[5]
        at = 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        width = 1 << (flags & 3)
        size = number(self.read(address + at, width), 0, width)
        blocks = [self._claim(address, at + width + size + 4)[at + width:-4]]
        messages = []
        while blocks:
            raw, at = blocks.pop(), 0
            while at + 4 <= len(raw):
                kind, size = raw[at], number(raw, at + 1, 2)
                at += 6 if flags & 4 else 4
                messages.append((kind, raw[at:at + size]))
                if kind == CONTINUATION:
                    blocks.append(self._claim(number(raw, at, 8), number(raw, at + 8, 8), b'OCHK')[4:-4])
                at += size
        self._messages(messages)

    def _messages(self, messages: Sequence[tuple[int, bytes]]) -> None:
        for kind, data in messages:
            if kind == SYMBOL_TABLE:
                self._group_tree(number(data, 0, 8))
                heap = self._claim(number(data, 8, 8), 32, b'HEAP')  # section III.D
                self._claim(number(heap, 24, 8), number(heap, 8, 8))
            elif kind == LAYOUT:
                self._layout(data)
            elif kind == ATTRIBUTE:
                check_attribute(data)
            elif kind == FILTERS:
                check_filters(data)
            elif kind == OLD_FILL and number(data, 0, 4) + 4 > len(data):
                raise ValueError('a damaged fill value')
            elif kind == MODIFIED and len(data) != 8:
                raise ValueError('a damaged time of modification')
            elif kind in (LINK_INFO, ATTRIBUTE_INFO):
                if data[0] or data[1] > 3:
                    raise ValueError('a damaged piece of information on links or attributes')
                skipped = 2 + (8 if data[1] & 1 and kind == LINK_INFO else 2 if data[1] & 1 else 0)
                heap_address = number(data, skipped, 8)
                if heap_address != UNDEFINED:  # dense storage, with checksums
                    self.complete = False
                    if self.read(heap_address, 4) != b'FRHP':
                        raise ValueError(f'no heap of links or attributes at byte {heap_address:,}')

    def _group_tree(self, address: int) -> None:
        """Section III.A.1 and III.B: the index of a group's members."""
        rank = self._group_rank
        node = self._claim(address, 24 + (2 * rank + 1) * 8 + 2 * rank * 8, b'TREE\0')
        for index in range(number(node, 6, 2)):
            child = number(node, 32 + 16 * index, 8)
            if node[5]:
                self._group_tree(child)
            else:
                self._claim(child, 8 + 2 * self._leaf_rank * 40, b'SNOD')

    def _layout(self, data: bytes) -> None:
        """Section IV.A.2.i: of arrays in chunks, the index."""
        if data[0] >= 4:
            self.complete &= data[1] != 2
        elif data[0] == 3 and data[1] == 2 and number(data, 3, 8) != UNDEFINED:
            self._chunk_tree(number(data, 3, 8), data[2])
        elif data[0] <= 2 and data[2] == 2 and number(data, 8, 8) != UNDEFINED:
            self._chunk_tree(number(data, 8, 8), data[1])

    def _chunk_tree(self, address: int, axes: int) -> None:
        key = 8 + 8 * axes
        node = self._claim(address, 24 + (2 * CHUNK_TREE_RANK + 1) * key + 2 * CHUNK_TREE_RANK * 8, b'TREE\1')
        if node[5]:
            for index in range(number(node, 6, 2)):
                self._chunk_tree(number(node, 24 + key + index * (key + 8), 8), axes)


def check_filters(data: bytes) -> None:
    """Refuse a list of filters that leaves some of its own bytes unused (section IV.A.2.l)."""
    version, at = data[0], 8 if data[0] == 1 else 2
    for _ in range(data[1]):
        named = version == 1 or number(data, at, 2) >= 256
        name = number(data, at + 2, 2) if named else 0
        values = number(data, at + (6 if named else 4), 2)
        at += (8 if named else 6) + name + 4 * (values + (values % 2 if version == 1 else 0))
    if not data[1] or at > len(data) or len(data) - at >= 8 or data[at:].strip(b'\0'):
        raise ValueError('a damaged list of filters')


def check_attribute(data: bytes) -> None:
    """Refuse a list of many references to one large text, which takes memory without end to read (section IV.A.2.m).

    Raises:
        ValueError: The list names more than a megabyte of text, or its parts do not fit the message.
    """
    version, name, datatype, space = data[0], number(data, 2, 2), number(data, 4, 2), number(data, 6, 2)
    if version == 1:
        name, datatype, space = ((size + 7) // 8 * 8 for size in (name, datatype, space))
    at = (9 if version == 3 else 8) + name
    if version not in (1, 2, 3) or not name or datatype < 8 or space < 4 or len(data) < at + datatype + space:
        raise ValueError('a damaged attribute')
    if data[at] & 15 == VARIABLE_LENGTH and data[at + datatype + 1]:  # a scalar is one text
        values = data[at + datatype + space:]
        total = sum(number(values, start, 4) for start in range(0, len(values) // 16 * 16, 16))
        if total > MAX_TEXT_BYTES:
            raise ValueError(f'an attribute of {total:,} bytes of text')
