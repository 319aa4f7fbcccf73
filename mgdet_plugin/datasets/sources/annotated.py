"""What annotations hold, in one form whatever their format, and how a split is told by a name."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.dataset_report import some

SPLITS = ('train', 'val', 'test')
_SPLIT_WORDS = dict(train='train', training='train', trainval='train', val='val', valid='val', validation='val',
                    test='test', testing='test')


@dataclass(frozen=True)
class Box:
    """One annotated box.

    Attributes:
        name: its class.
        bbox: x, y, width, height in pixels of the upright picture, from 0, as COCO has them.
        ignore: neither object nor background: a region of many objects (COCO's ``iscrowd``), VOC's ``difficult``.
        area: of the object in pixels, where the annotations tell it; that of the box elsewhere.
    """

    name: str
    bbox: tuple[float, float, float, float]
    ignore: bool = False
    area: float | None = None


@dataclass(frozen=True)
class Picture:
    """A picture and its boxes; ``split`` is one of ``SPLITS``, None where the annotations do not say.

    ``size`` is (w, h) in pixels as the annotations say, None where they do not.
    """

    path: Path
    boxes: tuple[Box, ...]
    split: str | None = None
    size: tuple[float, float] | None = None


@dataclass(frozen=True)
class Annotated:
    """What the annotations of a set hold.

    Attributes:
        format: in words, with the files it was found by.
        source: the folder or file.
        classes: in the order of the annotations.
        pictures: each with its boxes.
        missing: names of pictures that are annotated and not there.
        notes: what a person should know of how it was read, one line each.
    """

    format: str
    source: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The files below a folder, or the one file that was given.

    Attributes:
        given: what the person named.
        root: the folder, or that of the file.
        paths: files that may hold annotations, in order of their names.
    """

    given: Path
    root: Path
    paths: tuple[Path, ...] = field(repr=False)

    def ending(self, *suffixes: str) -> list[Path]:
        """Those with one of the suffixes."""
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    def shown(self, paths: Sequence[Path]) -> str:
        """Paths for one line, seen from the folder."""
        return some([path.relative_to(self.root).as_posix() for path in paths], 4)

    def split_of(self, path: Path) -> str | None:
        """The split that an annotation file's name or one of its folders tells."""
        return split_of(path.relative_to(self.root).with_suffix(''))


@dataclass(frozen=True)
class Hints:
    """What a person says where it cannot be found: class names, and the folder of the pictures."""

    classes: tuple[str, ...] | None = None
    images: Path | None = None


def split_of(path: PurePath) -> str | None:
    """The split that the last telling part of a path names: ``valid/a``, ``instances_train2017``."""
    for part in reversed(path.parts):
        for word in re.split('[^a-z]+', part.casefold()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def numbered(classes: Sequence[str], text: str, where: str) -> str:
    """The class of a number that counts from 0.

    Raises:
        UserError: it is no number of a class.
    """
    if not text.isdecimal() or int(text) >= len(classes):
        raise UserError(f'{where}: the class {text!r} is none of the {len(classes)} classes ({some(classes, 4)}), '
                        'which are numbered from 0; correct the file, or give all names by --classes')
    return classes[int(text)]
