"""Arrays kept by key, in memory or in a file that nothing can leave behind."""
from __future__ import annotations

import math
import os
import shutil
from collections.abc import Hashable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.dist import all_gather_object, barrier, get_rank, get_world_size

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.processes import on_first_rank

_NAME = '.arrays-'


class _Place(NamedTuple):
    """Where an array lies in a process's file."""
    rank: int
    offset: int
    shape: tuple[int, ...]
    dtype: str


class ArrayStore(Mapping[Any, np.ndarray]):
    """Arrays by key, each put once.

    The file loses its name as soon as it is open in every process: however a process ends, its room on the disk is
    free again, and nobody else can write to it. What is read and written lies in the system's memory as long as there
    is room.

    Args:
        folder: Where the file is made; None keeps the arrays in this process's memory.
        at_most: Bytes that this process may put. Default: no bound. A file takes at most half of what is free on the
            disk, so that there is room for checkpoints, shared by the processes.

    Raises:
        UserError: The file cannot be made.
    """

    def __init__(self, folder: Path | None = None, at_most: float = math.inf) -> None:
        self.at_most, self.bytes = at_most, 0
        self._held: dict[Hashable, np.ndarray] = {}
        self._places: dict[Hashable, _Place] = {}
        self._files: list[FileIO | None] = []
        self._shared = 0  # of the arrays this process has put, those that the others know of
        if folder is not None:
            try:
                self._files = _open_nameless(folder)
                self.at_most = min(at_most, shutil.disk_usage(folder).free / 2 / get_world_size())
            except OSError as error:
                raise UserError(f'cannot keep arrays in {folder}: {error.strerror}; keep them in memory, or give '
                                'another --work-dir') from error
        self._own: list[tuple[Hashable, _Place]] = []

    def put(self, key: Hashable, array: np.ndarray) -> bool:
        """Keep an array; returns whether there was room, and leaves all as it was where there was none."""
        if self.bytes + array.nbytes > self.at_most:
            return False
        if not self._files:
            self._held[key] = array
        else:
            place = _Place(get_rank(), self.bytes, array.shape, array.dtype.str)
            if not self._written(array, place.offset):
                self.at_most = self.bytes  # the disk is full
                return False
            self._places[key] = place
            self._own.append((key, place))
        self.bytes += array.nbytes
        return True

    def share(self) -> None:
        """Let all processes find what each has put into its file; call it in all of them."""
        if not self._files:
            return
        for entries in all_gather_object(self._own[self._shared:]):
            for key, place in entries:
                if self._files[place.rank] is not None:
                    self._places.setdefault(key, place)
        self._shared = len(self._own)

    def close(self) -> None:
        """Forget everything and give the room back; workers that were forked meanwhile hold the file open."""
        if self._files:
            own = self._files[get_rank()]
            assert own is not None
            own.truncate(0)
        for file in self._files:
            if file is not None:
                file.close()
        self._held, self._places, self._own, self._files, self.at_most = {}, {}, [], [], 0

    def _written(self, array: np.ndarray, offset: int) -> bool:
        file = self._files[get_rank()]
        assert file is not None
        try:
            file.seek(offset)
            return file.write(np.ascontiguousarray(array).data.cast('B')) == array.nbytes
        except OSError:
            return False

    def __getitem__(self, key: Hashable) -> np.ndarray:
        """The array; out of a file it is a copy.

        Raises:
            KeyError: There is none, or it cannot be read.
        """
        if key in self._held:
            return self._held[key]
        place = self._places[key]
        file, array = self._files[place.rank], np.empty(place.shape, place.dtype)
        assert file is not None
        try:
            file.seek(place.offset)
            whole = file.readinto(array.data.cast('B')) == array.nbytes
        except OSError:
            whole = False
        if not whole:
            raise KeyError(key)
        return array

    def __contains__(self, key: Any) -> bool:
        return key in self._held or key in self._places

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._held or self._places)

    def __len__(self) -> int:
        return len(self._held) + len(self._places)


def _open_nameless(folder: Path) -> list[FileIO | None]:
    """The files of all processes, this one's to write to, None for those on other machines; they have no names left."""

    def token() -> str:
        for left in folder.glob(f'{_NAME}*'):  # of a process that was killed between two lines of this function
            left.unlink(missing_ok=True)
        return os.urandom(8).hex()

    folder.mkdir(parents=True, exist_ok=True)
    name, own = on_first_rank(token), get_rank()
    paths = [folder / f'{_NAME}{name}-{rank}' for rank in range(get_world_size())]
    files: list[FileIO | None] = [None] * len(paths)
    files[own] = FileIO(paths[own], 'x+')
    barrier()
    for rank, path in enumerate(paths):
        if rank != own and path.exists():
            files[rank] = FileIO(path, 'r')
    barrier()
    paths[own].unlink()
    return files
