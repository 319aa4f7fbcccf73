"""A set as it will be trained on: pictures that can be opened, boxes that can be objects, and all that was left out."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.box_sense import BoxSense
from mgdet_plugin.datasets.formats.dataset_report import number_of, some
from mgdet_plugin.datasets.formats.picture_files import declared_sizes_unbounded, picture_size
from mgdet_plugin.datasets.sources.annotated import Annotated, Picture
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

_MOST = 0.5  # share of pictures that cannot be had, or of boxes that are no objects, above which a set is refused


@dataclass(frozen=True)
class SoundSet:
    """Pictures and boxes to train on.

    Attributes:
        annotated: what was read, without what was left out; the size of each picture is that of its file, upright.
        lines: what was left out, and what a person should know, one line each.
    """

    annotated: Annotated
    lines: tuple[str, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its pictures."""
        return self.annotated.pictures


def sound_set(annotated: Annotated) -> SoundSet:
    """Leave out what cannot be trained on.

    Raises:
        UserError: most pictures are missing or unreadable, most boxes are no objects or written in another way, a
            picture is named twice, or no box is left.
    """
    source = str(annotated.source)
    twice = [path for path, count in Counter(each.path.resolve() for each in annotated.pictures).items() if count > 1]
    if twice:
        raise UserError(f'{source}: {len(twice):,} pictures are named more than once (first: {twice[0]}); name each in '
                        'one place and one split')
    with declared_sizes_unbounded():
        sizes = [picture_size(str(each.path)) for each in annotated.pictures]
    unreadable = [each for each, size in zip(annotated.pictures, sizes) if not all(size)]
    lost = len(annotated.missing) + len(unreadable)
    lines = []
    for what, names in (('not there', annotated.missing),
                        ('unreadable', [str(each.path) for each in unreadable])):
        if names:
            lines.append(f'{len(names):,} annotated pictures left out, {what}: {some(names, 3)}')
    if lost > _MOST * (len(annotated.pictures) + len(annotated.missing)):
        raise UserError(f'{source}: {"; ".join(lines)}; that is most of them: give the folder of the pictures by '
                        '--images')
    pictures = [replace(each, size=size) for each, size in zip(annotated.pictures, sizes) if all(size)]
    other = [(old, new) for old, new in zip(annotated.pictures, sizes) if all(new) and old.size not in (None, new)]
    if other:
        (old, new), count = other[0], len(other)
        lines.append(f'{count:,} pictures are of another size than the annotations say (first: {old.path.name} is '
                     f'{new[0]} x {new[1]}, said to be {old.size and f"{old.size[0]} x {old.size[1]}"}): boxes are '
                     'taken as pixels of the file')
    sound, dropped = _sound_boxes(pictures, source)
    ignored = Counter(box.name for each in sound for box in each.boxes if box.ignore)
    if ignored:
        lines.append(f'{ignored.total():,} crowd or difficult boxes kept as regions to be ignored ({counted(ignored)})')
    if not any(not box.ignore for each in sound for box in each.boxes):
        raise UserError(f'{source}: no box is left to train on' + ''.join(f'; {line}' for line in [*dropped, *lines]))
    return SoundSet(replace(annotated, pictures=tuple(sound), missing=()), (*annotated.notes, *dropped, *lines))


def counted(names: Counter[str]) -> str:
    """Names with their counts, the most frequent first, for one line."""
    return some([f'{name} {count:,}' for name, count in names.most_common()], 20)


def class_counts(pictures: Iterable[Picture]) -> Counter[str]:
    """Class -> boxes, those to be ignored included."""
    return Counter(box.name for each in pictures for box in each.boxes)


def _sound_boxes(pictures: Iterable[Picture], source: str) -> tuple[list[Picture], list[str]]:
    """The pictures with the boxes that can be objects, and lines on the others."""
    sense = BoxSense(corners=False)
    dropped: dict[str, Counter[str]] = {}
    first: dict[str, str] = {}
    sound = []
    for picture in pictures:
        kept = []
        for box in picture.boxes:
            x, y, width, height = box.bbox
            sense.count(box.bbox, picture.size, picture.path.name)
            reason = degenerate_reason((x, y, x + width, y + height), picture.size)
            if reason is None:
                kept.append(box)
                continue
            dropped.setdefault(reason, Counter())[box.name] += 1
            first.setdefault(reason, f'{picture.path.name}, {list(box.bbox)}')
        sound.append(replace(picture, boxes=tuple(kept)))
    sense.refuse(source, 'the annotations')
    lines = [f'left out ({reason}): {number_of(count.total(), "box")}: {counted(count)} (first: {first[reason]})'
             for reason, count in dropped.items()]
    if sum(each.total() for each in dropped.values()) > _MOST * sense.boxes:
        raise UserError(f'{source}: {"; ".join(lines)}; that is most of them, too many to be meant')
    if sense.beyond:
        lines.append(f'{sense.beyond:,} boxes reach beyond their picture and stay as they are (first: '
                     f'{sense.first_beyond})')
    return sound, lines
