"""What is wrong with picture files: unreadable, cut short, the same twice, turned, or of an odd size."""
from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median
from threading import Thread

import numpy as np
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.datasets.formats.picture_files import (
    DECODER_ERRORS,
    ON_ITS_SIDE,
    declared_sizes_unbounded,
    orientation_of,
)
from mgdet_plugin.datasets.formats.pictures import loaded
from mgdet_plugin.prepare.faults.findings import ERROR, NOTE, WARNING, Example, Finding, found
from mgdet_plugin.prepare.faults.picture_records import TRAIN, Corners, PictureRecord

LONG = 5.0  # ratio of the sides from which a picture is called long
FAR = 8.0  # factor between a picture's longer side and the median from which it is called of another size
SMALL = 32  # pixels of the shorter side, one cell of the coarsest level
_AGAIN = 'fetch them again, or take their records out'
_CUT = ('truncated', 'broken data')  # what Pillow says of a file that is not whole
PATIENCE = 60.0  # seconds for one picture
_PROGRESS = 5.0  # seconds between two words on the progress


@dataclass(frozen=True)
class PictureLook:
    """What one file was found to be.

    Attributes:
        size: (w, h) in pixels as it is trained on; None where it cannot be read.
        fault: Why it cannot be read.
        cut: Why it is not whole, though the loader of the pipeline reads it.
        content: Tells one content from another, as it is loaded, whatever the file's format and metadata are.
        orientation: How it lies in the file by its Exif data, 1 for upright.
    """

    size: tuple[int, int] | None = None
    fault: str = ''
    cut: str = ''
    content: str = ''
    orientation: int = 1


def look_at(paths: Sequence[str], loader: LoadImageFromFile, say: Callable[[str], object] = str,
            patience: float = PATIENCE) -> dict[str, PictureLook]:
    """Decode pictures by the loader of their pipeline.

    Args:
        paths: The files, each once.
        loader: The step of the pipeline that loads them.
        say: Takes a line on the progress.
        patience: Seconds after which a picture that is still being decoded is given up. Its thread cannot be ended and
            is left alone; another one takes its place.
    """
    looks: dict[str, PictureLook] = {}
    waiting, ready, begun = SimpleQueue[str | None](), SimpleQueue[tuple[str, PictureLook]](), dict[str, float]()

    def work() -> None:
        while (path := waiting.get()) is not None:
            begun[path] = time.monotonic()
            ready.put((path, _look(path, loader)))

    def start(count: int) -> None:
        for _ in range(count):
            Thread(target=work, daemon=True).start()  # a process ends in spite of those that hang

    threads = min(8, os.cpu_count() or 1)
    for each in [*paths, *[None] * threads]:
        waiting.put(each)
    said = time.monotonic()
    with declared_sizes_unbounded():
        start(threads)
        while len(looks) < len(paths):
            with suppress(Empty):
                path, look = ready.get(timeout=min(1.0, patience))
                looks.setdefault(path, look)
            now = time.monotonic()
            hung = [path for path, since in list(begun.items()) if path not in looks and now - since > patience]
            looks |= {path: PictureLook(fault=f'not decoded in {patience:g} seconds') for path in hung}
            start(len(hung))
            if now - said > _PROGRESS:
                said = now
                say(f'{len(looks):,} of {number_of(len(paths), "picture")} looked at')
    return {path: looks[path] for path in paths}


def _look(path: str, loader: LoadImageFromFile) -> PictureLook:
    """What a file is; nothing is raised, as nobody would see it."""
    found = loaded(path, loader)
    if isinstance(found, str):
        return PictureLook(fault=found)
    pixels = np.ascontiguousarray(found['img'])
    cut, turned = _in_file(path)
    return PictureLook((found['ori_shape'][1], found['ori_shape'][0]), cut=cut, orientation=turned,
                       content=sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest())


def _in_file(path: str) -> tuple[str, int]:
    """Why a file is not whole, as Pillow says, which fills up nothing; and how the picture lies in it.

    A JPEG is decoded at an eighth of its size for that, and of a PNG the checksums are read.
    """
    turned = 1
    try:
        with Image.open(path) as picture:
            turned = orientation_of(picture)
            if picture.format == 'PNG':
                picture.verify()
            else:
                picture.draft('RGB', (1, 1))
                picture.load()
    except DECODER_ERRORS as error:
        # Pillow does not read every format that a loader reads: that it fails is no fault by itself
        return (str(error) if any(word in str(error).casefold() for word in _CUT) else ''), turned
    return '', turned


def picture_findings(records: Sequence[PictureRecord], looks: dict[str, PictureLook]) -> Iterator[Finding]:
    """What is wrong with the pictures that were looked at."""
    seen = [(each, looks[each.path]) for each in records if each.path in looks]
    yield from _unread(seen)
    yield from _duplicates(seen)
    yield from _turned(seen)
    yield from _odd(seen)


Seen = Sequence[tuple[PictureRecord, PictureLook]]


def _unread(seen: Seen) -> Iterator[Finding]:
    bad = [Example(record.path, record.split, look.fault) for record, look in seen if look.fault]
    yield from found('unreadable', ERROR, bad, _all(seen), 'cannot be read', _AGAIN)
    cut = [Example(record.path, record.split, look.cut, *_boxes(record)) for record, look in seen if look.cut]
    yield from found('cut_short', ERROR, cut, _all(seen), 'are cut short, and the loader fills up what is '
                     'missing without a word: objects there are grey', _AGAIN)


def _duplicates(seen: Seen) -> Iterator[Finding]:
    """One content in several pictures: across splits, within one, and with other boxes."""
    copies: dict[str, list[PictureRecord]] = defaultdict(list)
    for record, look in seen:
        if look.content:
            copies[look.content].append(record)
    kinds: dict[str, list[Example]] = dict(leak=[], shared=[], duplicate=[])
    for group in (each for each in copies.values() if len(each) > 1):
        splits = {each.split for each in group}
        others = ', '.join(f'{each.split}: {Path(*Path(each.path).parts[-2:])}' for each in group[1:])
        labels = '' if len({each.boxes for each in group}) == 1 else '; with other boxes'
        kinds['duplicate' if len(splits) == 1 else 'leak' if TRAIN in splits else 'shared'].append(
            Example(group[0].path, group[0].split, f'also {others}{labels}', *_boxes(group[0])))
    whole = number_of(len(copies), 'different picture')
    yield from found('leak', ERROR, kinds['leak'], whole, 'are trained on and measured on',
                     'take them out of one of the sets: what is measured on them says nothing')
    yield from found('shared', WARNING, kinds['shared'], whole, 'are in several of the sets that are measured on',
                     'take them out of one, or the test set helps to choose the checkpoint')
    yield from found('duplicate', WARNING, kinds['duplicate'], whole, 'are there more than once in a set',
                     'keep one of each; a split drawn by chance puts copies on both sides')


def _turned(seen: Seen) -> Iterator[Finding]:
    """Exif orientation and sizes other than the annotations say."""
    kinds: dict[str, list[Example]] = dict(exif_boxes=[], other_size=[], exif=[])
    for record, look in seen:
        if look.size is None:
            continue
        told = look.size if record.size is None else (round(record.size[0]), round(record.size[1]))
        if told == look.size and look.orientation == 1:
            continue
        kind = ('exif' if told == look.size else
                'exif_boxes' if look.orientation in ON_ITS_SIDE and told == look.size[::-1] else 'other_size')
        kinds[kind].append(Example(
            record.path, record.split, f'{look.size[0]} x {look.size[1]} as loaded, its record says {told[0]} x '
                                       f'{told[1]}, Exif orientation {look.orientation}', *_boxes(record)))
    yield from found('exif_boxes', ERROR, kinds['exif_boxes'], _all(seen), 'are turned by Exif when loaded, and the '
                     'boxes are not', 'write them upright and without Exif, or load them by '
                     "dict(type='LoadImageFromFile', color_type='color_ignore_orientation')")
    yield from found('other_size', ERROR, kinds['other_size'], _all(seen), 'are of another size than the record says',
                     'correct the sizes, or the pictures: boxes are in pixels of the picture')
    yield from found('exif', NOTE, kinds['exif'], _all(seen), 'are turned or mirrored by Exif when loaded; the sizes '
                     'agree', 'look at them on the page: the boxes must lie on the objects')


def _odd(seen: Seen) -> Iterator[Finding]:
    sizes = [(record, look.size) for record, look in seen if look.size]
    usual = median(max(size) for _, size in sizes) if sizes else 0
    kinds: tuple[tuple[str, Callable[[tuple[int, int]], bool], str, str], ...] = (
        ('small_picture', lambda size: min(size) < SMALL, f'are less than {SMALL} pixels wide or high',
         'take them out if they show nothing'),
        ('long_picture', lambda size: max(size) >= LONG * min(size), f'have a side {LONG:g} times the other or more',
         'cut them into parts: the letterbox makes their objects small'),
        ('far_size', lambda size: not usual / FAR < max(size) < usual * FAR,
         f'have a longer side {FAR:g} times above or below the median ({usual:g} pixels)',
         'see whether they belong to the set: their objects come out at another scale'))
    for kind, is_odd, what, advice in kinds:
        odd = [Example(record.path, record.split, f'{size[0]} x {size[1]}', *_boxes(record))
               for record, size in sizes if is_odd(size)]
        yield from found(kind, NOTE, odd, _all(seen), what, advice)


def _boxes(record: PictureRecord) -> tuple[tuple[Corners, ...], tuple[int, ...]]:
    """Corners and labels of a picture's boxes, for an example."""
    return tuple(box.corners for box in record.sound), tuple(box.label for box in record.sound)


def _all(seen: Seen) -> str:
    return number_of(len(seen), 'picture')
