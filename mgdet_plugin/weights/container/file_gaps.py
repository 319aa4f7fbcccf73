"""Free bytes of an HDF5 file that hold data, and whether an array really lies there.

A file written in one go has zeros for free bytes. Data that belongs to nothing is left behind by an array whose address
is damaged, and by editing: deleting an optimizer, renaming layers. The two are told apart by what fits. An array with a
damaged address leaves a gap of its size, and where it is said to lie nothing else does, so that it reads zeros. (In a
file that was edited before it may read what was left there; then the two cannot be told apart.)
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mgdet_plugin.weights.container.stored_array import Block

PAGE = 2 ** 16

ReadBytes = Callable[[int, int], bytes]  # address, size -> bytes


@dataclass(frozen=True)
class Gap:
    """Free bytes of a file with data among them.

    Attributes:
        start: First byte.
        end: End of the gap.
        data_start: First byte that is not zero.
        data_end: End of the data.
    """

    start: int
    end: int
    data_start: int
    data_end: int

    def places_for(self, size: int) -> range:
        """Addresses at which an array of ``size`` bytes would lie in the gap and hold all its data."""
        return range(max(self.start, self.data_end - size), min(self.data_start, self.end - size) + 1)


def pages(read: ReadBytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Address and bytes of the pieces of a part of a file."""
    for address in range(start, end, PAGE):
        yield address, read(address, min(PAGE, end - address))


def find_gap(read: ReadBytes, start: int, end: int) -> Gap | None:
    """The gap between two pieces of structure, None where it holds zeros alone."""
    data = [(address + len(page) - len(page.lstrip(b'\0')), address + len(page.rstrip(b'\0')))
            for address, page in pages(read, start, end) if page.strip(b'\0')]
    return Gap(start, end, data[0][0], data[-1][1]) if data else None


def seems_moved(read: ReadBytes, block: Block, gap: Gap) -> bool:
    """Whether an array may really lie in a gap: it would fit there, and it reads zeros where it is said to lie."""
    return bool(block.size and gap.places_for(block.size)) and not any(
        page.strip(b'\0') for _, page in pages(read, block.address, block.address + block.size))
