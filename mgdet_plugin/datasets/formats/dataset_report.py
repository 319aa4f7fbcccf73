"""What the annotations of one dataset hold: counted box by box, said in lines, refused where it cannot be meant."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.box_sense import BoxSense

_MOST = 0.5  # share of skipped boxes above which a set is refused


class ImageRecord(NamedTuple):
    """One image as the annotations name it: its path below the image folder, (w, h) in pixels or None if not told."""

    image_id: Any
    file_name: str
    size: tuple[float, float] | None


@dataclass
class DatasetReport:
    """What the annotations of one dataset hold for its classes.

    Attributes:
        name: ``train``, ``val`` or ``test``, with a number where a wrapper holds several.
        source: the annotation file or folder.
        classes: the classes of the dataset.
        sense: how its boxes are written.
        records: the images.
        per_class: class name -> boxes, the skipped ones included.
        with_objects: ids of the images that show an object of its classes.
        skipped: reason -> number of degenerate boxes, which never reach the model.
        first_skipped: the first of them, ``image NAME, [...]``.
        left_to_transform: how many of them mmdet's dataset does not skip by itself.
        other_classes: class name -> boxes left out because metainfo does not list the class.
        note: why nothing was read, where that is so.
        more: further lines, on its image files for one.
    """

    name: str = ''
    source: object = ''
    classes: Sequence[str] = ()
    sense: BoxSense = field(default_factory=lambda: BoxSense(corners=False))
    records: list[ImageRecord] = field(default_factory=list)
    per_class: Counter[str] = field(default_factory=Counter)
    with_objects: set[Any] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: str = ''
    left_to_transform: int = 0
    other_classes: Counter[str] = field(default_factory=Counter)
    note: str = ''
    more: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images its annotations name."""
        return len(self.records)

    @property
    def boxes(self) -> int:
        """Number of boxes of its classes, the skipped ones included."""
        return self.per_class.total()

    def count(self, record: ImageRecord, class_name: str, values: Sequence[float], reason: str | None,
              by_dataset: bool) -> None:
        """Count one box by the numbers of the file; ``by_dataset``: mmdet's dataset skips it if there is a reason."""
        self.per_class[class_name] += 1
        self.with_objects.add(record.image_id)
        image = f'image {record.file_name}'
        self.sense.count(values, record.size, image)
        if reason is not None:
            self.first_skipped = self.first_skipped or f'{image}, {list(values)}'
            self.skipped[reason] += 1
            self.left_to_transform += not by_dataset

    def refuse(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UserError: no image, boxes in another reading or relative, or most of them skipped.
        """
        if self.note:
            return
        if not self.records:
            raise UserError(f'{self.name}: {self.source} names no image; point ann_file to one that does')
        self.sense.refuse(self.name, self.source)
        if self.skipped.total() > _MOST * self.boxes:
            raise UserError(f'{self.name}: {self._skipped_text()}, too many to be meant; correct {self.source}')

    def lines(self) -> list[str]:
        """The lines to log; empty when there is nothing a person should know."""
        if self.note:
            return [f'{self.name}: {self.note}']
        lines = [f'{self.name}: {self._skipped_text()}'] if self.skipped else []
        lines += self.sense.lines(self.name)
        if self.other_classes:
            lines.append(f'{self.name}: {self.other_classes.total():,} boxes left out, their classes are not in '
                         f'metainfo: {some(self.other_names())}')
        unused = [name for name in self.classes if not self.per_class[name]]
        if unused:
            lines.append(f'{self.name}: no box of {len(unused)} of {len(self.classes)} classes: {some(unused)}')
        return lines + [f'{self.name}: {line}' for line in self.more]

    def other_names(self) -> list[str]:
        """The classes that metainfo does not list, quoted where a space begins or ends them."""
        return [name if name == name.strip() else repr(name) for name in sorted(self.other_classes)]

    def _skipped_text(self) -> str:
        reasons = list(self.skipped.items())
        text = reasons[0][0] if len(reasons) == 1 else ', '.join(f'{count:,} {why}' for why, count in reasons)
        return (f'{self.skipped.total():,} of {self.boxes:,} boxes skipped: {text} (first: {self.first_skipped})')


def number_of(count: int, what: str) -> str:
    """A number of something in words: '1 picture', '2 boxes'."""
    return f'{count:,} {what}{"" if count == 1 else "es" if what[-1] in "sx" else "s"}'


def some(names: Sequence[object], limit: int = 10) -> str:
    """A list of names for one line, cut after ``limit``."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(str(name) for name in names[:limit]) + more
