"""Pictures decoded before training by the loader of their pipeline, so that what passes here passes there.

Threads share the work, for a bounded time; what took longer than a moment is remembered in the user's cache folder, so
that of a large set each start looks at what no earlier one has seen.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from mmcv.transforms import LoadImageFromFile

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.datasets.formats.dataset_report import ImageRecord, some
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS, declared_sizes_unbounded, file_fault
from mgdet_plugin.datasets.transforms.load_readable_image import LoadReadableImage

BUDGET = 60.0  # seconds of decoding, all sets of a start together
_REMEMBER = 1.0  # seconds of decoding from which its result is remembered
_PROGRESS = 5.0  # seconds between two words on the progress
_NEARLY_ALL = 0.9  # share of pictures of another size than said above which a set is refused
_IN_ONE_LINE = 10  # unreadable pictures; more have a line each
_SKIP = "; to train without a few, load them by dict(type='LoadReadableImage', skip=SHARE), SHARE at least {:g}"


class Look(NamedTuple):
    """What came of one picture: (w, h) in pixels, or why it cannot be read; neither if there was no time for it."""

    record: ImageRecord
    size: tuple[int, int] | None = None
    fault: str = ''


@dataclass
class Inspector:
    """Looks at the pictures of all datasets of one start.

    Args:
        budget: seconds of decoding, all datasets together.
        say: takes a line on the progress.
    """

    budget: float = BUDGET
    say: Callable[[str], object] = str
    known: dict[Path, dict[str, list[int]]] = field(default_factory=dict, init=False)  # what each memory file holds

    def inspect(self, name: str, records: Sequence[ImageRecord], folder: Path, loader: LoadImageFromFile,
                skip: float = 0.0, otherwise: str = 'take their records out') -> list[str]:
        """Decode the pictures of one dataset.

        Args:
            name: the dataset's, for messages.
            records: its images.
            folder: where their paths begin.
            loader: the step of its pipeline that loads them.
            skip: the share of them that may be unreadable.
            otherwise: what to do with those that cannot be fetched again, for messages.

        Returns:
            Lines on what is not as the records say.

        Raises:
            UserError: more than that cannot be read, or nearly all are of another size than their records say.
        """
        with declared_sizes_unbounded():
            looks = list(self._look_at(name, records, folder, loader))
        lines = []
        bad = [f'{look.record.file_name} (id {look.record.image_id}): {look.fault}' for look in looks if look.fault]
        if len(bad) == len(looks) > 1 and len({look.fault for look in looks}) == 1:
            raise UserError(f'{name}: {type(loader).__name__} reads none of {len(looks):,} pictures in {folder} '
                            f'(first: {bad[0]}); see its imdecode_backend and what that needs installed, or the files')
        if bad:
            text = f'{len(bad):,} of {len(looks):,} pictures in {folder} cannot be read'
            if len(bad) > skip * len(looks):
                way_out = _SKIP.format(ceil(1000 * len(bad) / len(looks)) / 1000) if name.startswith('train') else ''
                for each in bad if len(bad) > _IN_ONE_LINE else ():
                    self.say(f'{name}: cannot read {each}')
                raise UserError(f'{name}: {text}: {some(bad, _IN_ONE_LINE)}; fetch them again or '
                                f'{otherwise}{way_out}')
            lines.append(f'{text} and will be skipped: {some(bad, len(bad))}')
        seen = [look for look in looks if look.size]
        other = [look for look in seen if look.record.size not in (None, look.size)]
        if other:
            lines.append(_size_line(other, len(seen)))
            if len(other) >= _NEARLY_ALL * len(seen):
                raise UserError(f'{name}: {lines[-1]}; correct the sizes in the annotations, or the pictures')
        unseen = len(looks) - len(seen) - len(bad)
        if unseen:
            lines.append(f'{unseen:,} of {len(looks):,} pictures were not looked at, for want of time; the others are '
                         'remembered, and the next start looks at more')
        return lines

    def _look_at(self, name: str, records: Sequence[ImageRecord], folder: Path,
                 loader: LoadImageFromFile) -> Iterator[Look]:
        """One look a record, in order: remembered, decoded, or none for want of time."""
        begun = said = time.monotonic()
        memory = _memory_file(folder, loader)
        known = self.known.setdefault(memory, {}) or _remembered(memory)
        self.known[memory] = known

        def look(record: ImageRecord) -> Look:
            path = os.path.join(folder, record.file_name)
            stamp = _stamp(path)
            if stamp and known.get(record.file_name, [])[:2] == stamp:
                return Look(record, (known[record.file_name][2], known[record.file_name][3]))
            if time.monotonic() - begun > self.budget:
                return Look(record)
            found = decoded(path, loader)
            if isinstance(found, str):
                return Look(record, fault=found)
            known[record.file_name] = [*stamp, *found]
            return Look(record, found)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for count, each in enumerate(pool.map(look, records), 1):
                yield each
                if time.monotonic() - said > _PROGRESS:
                    said = time.monotonic()
                    self.say(f'{name}: {count:,} of {len(records):,} pictures looked at')
        spent = time.monotonic() - begun
        self.budget -= spent
        if spent > _REMEMBER:
            _remember(memory, known)


def decoded(path: str, loader: LoadImageFromFile) -> tuple[int, int] | str:
    """(w, h) of a picture in pixels as its pipeline will see it, or what is wrong with it."""
    found = loaded(path, loader)
    return found if isinstance(found, str) else (found['ori_shape'][1], found['ori_shape'][0])


def loaded(path: str, loader: LoadImageFromFile) -> dict[str, Any] | str:
    """A picture as its pipeline will see it (``img``, ``ori_shape``), or what is wrong with it."""
    fault = file_fault(path)
    if fault:
        return fault
    try:
        load = loader.load if isinstance(loader, LoadReadableImage) else loader.transform
        found: dict[str, Any] | None = load(dict(img_path=path))
    except AssertionError:
        return 'cut short or no picture, the decoder returns nothing'
    except DECODER_ERRORS as error:
        return f'{type(error).__name__}: {error}'
    return found or 'the loader returns nothing'


def _size_line(other: Sequence[Look], total: int) -> str:
    """What to say of pictures that are not of the size their records say."""
    record, size, _ = other[0]
    turned = sum(each.record.size == (each.size or ())[::-1] for each in other)
    return (f'{len(other):,} of {total:,} pictures are not of the size that their records say (first: '
            f'{record.file_name} is {_times(size)}, its record says {_times(record.size)})' + (
                f"; {turned:,} seem turned by 90 degrees: a loader with color_type='color_ignore_orientation' leaves "
                'pictures as they are stored' if turned else ''))


def _times(size: tuple[float, float] | None) -> str:
    return ' x '.join(map(str, size or ()))


def _stamp(path: str) -> list[int]:
    """What tells one content of a file from another without reading it; nothing for a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _memory_file(folder: Path, loader: LoadImageFromFile) -> Path:
    """Where the sizes of a folder's pictures are remembered, as one loader reads them."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    key = sha256(f'{folder.resolve()} {loader!r}'.encode()).hexdigest()[:32]
    return Path(cache, 'mgdet', 'pictures', f'{key}.json')


def _remembered(memory: Path) -> dict[str, list[int]]:
    """Name of a picture -> bytes and change time of its file, its width and height; empty where none is known."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, list[int]]) -> None:
    """Write what is known, if the cache folder can be written to."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_together({memory: lambda stream: stream.write(json.dumps(known).encode())})
    except (OSError, UserError):
        return  # the next start looks again
