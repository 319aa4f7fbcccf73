"""What is wrong with picture files: unreadable, cut short, the same twice, turned, or of an odd size."""
from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median

from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mgdet_plugin.datasets.formats.pictures import ON_ITS_SIDE, declared_sizes_unbounded, decoded, orientation_of
from mgdet_plugin.datasets.transforms.load_readable_image import DECODER_ERRORS
from mgdet_plugin.prepare.findings import ERROR, NOTE, WARNING, Example, Finding
from mgdet_plugin.prepare.picture_records import TRAIN, PictureRecord

LONG = 5.0  # ratio of the sides from which a picture is called long
FAR = 8.0  # factor between a picture's longer side and the median from which it is called of another size
SMALL = 32  # pixels of the shorter side, one cell of the coarsest level
_PROGRESS = 5.0  # seconds between two words on the progress


@dataclass(frozen=True)
class PictureLook:
    """What one file was found to be.

    Attributes:
        size: (w, h) in pixels as it is trained on; None where it cannot be read.
        fault: Why it cannot be read.
        cut: Why it is not whole, though the loader of the pipeline reads it.
        content: Tells one content from another, whatever the file's format and metadata are.
        orientation: How it lies in the file by its Exif data, 1 for upright.
    """

    size: tuple[int, int] | None = None
    fault: str = ''
    cut: str = ''
    content: str = ''
    orientation: int = 1


def look_at(paths: Sequence[str], loader: LoadImageFromFile,
            say: Callable[[str], object] = str) -> dict[str, PictureLook]:
    """Decode pictures: by the loader of their pipeline, and by Pillow, which does not fill up what is missing.

    Args:
        paths: The files, each once.
        loader: The step of the pipeline that loads them.
        say: Takes a line on the progress.
    """
    looks: dict[str, PictureLook] = {}
    said = time.monotonic()
    with declared_sizes_unbounded(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, look in zip(paths, pool.map(lambda path: _look(path, loader), paths)):
            looks[path] = look
            if time.monotonic() - said > _PROGRESS:
                said = time.monotonic()
                say(f'{len(looks):,} of {len(paths):,} pictures looked at')
    return looks


def _look(path: str, loader: LoadImageFromFile) -> PictureLook:
    found = decoded(path, loader)
    if isinstance(found, str):
        return PictureLook(fault=found)
    try:
        with Image.open(path) as picture:
            turned = orientation_of(picture)
            content = sha256(repr((picture.size, turned)).encode() + picture.convert('RGB').tobytes())
            return PictureLook(found, content=content.hexdigest(), orientation=turned)
    except DECODER_ERRORS as error:
        # Pillow does not know every format that a loader reads: only what it begins to read can be cut short
        content = sha256(Path(path).read_bytes())
        return PictureLook(found, cut=str(error) if 'truncated' in str(error) else '', content=content.hexdigest())


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
    if bad:
        yield Finding('unreadable', ERROR, len(bad), f'{_count(bad, seen)} cannot be read',
                      'fetch them again, or take their records out', bad)
    cut = [Example(record.path, record.split, look.cut, *_boxes(record)) for record, look in seen if look.cut]
    if cut:
        yield Finding('cut_short', ERROR, len(cut), f'{_count(cut, seen)} are cut short, and the loader fills up what is '
                      'missing without a word: its objects are grey', 'fetch them again, or take their records out', cut)


def _duplicates(seen: Seen) -> Iterator[Finding]:
    """One content in several pictures: across splits, within one, and with other boxes."""
    copies: dict[str, list[PictureRecord]] = defaultdict(list)
    for record, look in seen:
        if look.content:
            copies[look.content].append(record)
    groups = [group for group in copies.values() if len(group) > 1]
    leaks, others, within = [], [], []
    for group in groups:
        splits = {each.split for each in group}
        shown = Example(group[0].path, group[0].split, 'also ' + ', '.join(
            f'{each.split}: {each.path}' for each in group[1:]))
        (within if len(splits) == 1 else leaks if TRAIN in splits else others).append(shown)
    if leaks:
        yield Finding('leak', ERROR, len(leaks), f'{len(leaks):,} pictures are trained on and measured on',
                      'take them out of one of the splits: what is measured on them says nothing', leaks)
    if others:
        yield Finding('shared', WARNING, len(others), f'{len(others):,} pictures are in several of the sets measured on',
                      'take them out of one, or the test set helps to choose the checkpoint', others)
    if within:
        yield Finding('duplicate', WARNING, len(within), f'{len(within):,} pictures are there more than once in a split',
                      'keep one of each; with a split drawn by chance a copy lands on both sides', within)


def _turned(seen: Seen) -> Iterator[Finding]:
    """Exif orientation and sizes other than the annotations say."""
    wrong, turned, other = [], [], []
    for record, look in seen:
        if look.size is None:
            continue
        told = record.size and (round(record.size[0]), round(record.size[1]))
        example = Example(record.path, record.split, f'{look.size[0]} x {look.size[1]} as loaded, its record says '
                          + (f'{told[0]} x {told[1]}' if told else 'nothing'), *_boxes(record))
        differs = told is not None and told != look.size
        if differs and look.orientation in ON_ITS_SIDE and told == look.size[::-1]:
            wrong.append(example)
        elif differs:
            other.append(example)
        elif look.orientation != 1:
            turned.append(Example(record.path, record.split, f'Exif orientation {look.orientation}', *_boxes(record)))
    if wrong:
        yield Finding('exif_boxes', ERROR, len(wrong), f'{_count(wrong, seen)} are turned by their Exif data when they '
                      'are loaded, and their boxes are not', 'write the pictures upright and without Exif, or load them by '
                      "dict(type='LoadImageFromFile', color_type='color_ignore_orientation')", wrong)
    if other:
        yield Finding('other_size', ERROR, len(other), f'{_count(other, seen)} are of another size than their record says',
                      'correct the sizes, or the pictures: boxes are in pixels of the picture', other)
    if turned:
        yield Finding('exif', NOTE, len(turned), f'{_count(turned, seen)} are turned or mirrored by their Exif data when '
                      'they are loaded; their sizes agree with that', 'look at them on the page: the boxes must lie on '
                      'the objects', turned)


def _odd(seen: Seen) -> Iterator[Finding]:
    sizes = [(record, look.size) for record, look in seen if look.size]
    usual = median(max(size) for _, size in sizes) if sizes else 0
    kinds = (
        ('small_picture', lambda size: min(size) < SMALL, f'are less than {SMALL} pixels wide or high',
         'take them out if they show nothing'),
        ('long_picture', lambda size: max(size) >= LONG * min(size), f'are {LONG:g} times as long as wide or more',
         'cut them into parts: the letterbox makes their objects small'),
        ('far_size', lambda size: not usual / FAR < max(size) < usual * FAR,
         f'have a longer side {FAR:g} times above or below the median ({usual:g} pixels)',
         'see whether they belong to the set: their objects come out at another scale'))
    for kind, is_odd, what, advice in kinds:
        found = [Example(record.path, record.split, f'{size[0]} x {size[1]}', *_boxes(record))
                 for record, size in sizes if is_odd(size)]
        if found:
            yield Finding(kind, NOTE, len(found), f'{_count(found, seen)} {what}', advice, found)


def _boxes(record: PictureRecord) -> tuple[tuple, tuple]:
    """Corners and labels of a picture's boxes, for an example."""
    return tuple(box.corners for box in record.sound), tuple(box.label for box in record.sound)


def _count(found: Sequence[Example], seen: Seen) -> str:
    return f'{len(found):,} of {len(seen):,} pictures'
