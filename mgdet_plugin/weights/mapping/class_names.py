"""Which class of a weights file a new class is, by name, and what became of every class, in words.

Two names are one class where they are equal, where they differ only in case, spaces, underscores and hyphens, or where
both stand in one group of :data:`ALIASES`. Names that are merely related (rider and person, van and car, a union such
as Objects365's 'Bowl/Basin') are different classes.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Synonyms between the class lists of COCO, Pascal VOC, Darknet's coco.names, ImageNet DET and VID, Objects365 v1 and
# v2 (with their spellings), LVIS v1, Open Images v6, ADE20K instances, Cityscapes, BDD100K (2018 and 2020), KITTI,
# MOT Challenge, VisDrone and DOTA, and everyday words for the same thing. COCO's name comes first.
ALIASES: tuple[tuple[str, ...], ...] = (
    ('person', 'pedestrian', 'human', 'people'),
    ('bicycle', 'bike'),
    ('car', 'automobile', 'car_(automobile)'),
    ('motorcycle', 'motorbike', 'motor'),
    ('airplane', 'aeroplane', 'plane'),
    ('bus', 'bus_(vehicle)'),
    ('train', 'train_(railroad_vehicle)'),
    ('truck', 'lorry'),
    ('fire hydrant', 'fireplug'),
    ('cat', 'domestic cat'),
    ('cow', 'cattle'),
    ('tie', 'necktie'),
    ('skis', 'ski'),
    ('tennis racket', 'tennis racquet'),
    ('orange', 'orange_(fruit)'),
    ('donut', 'doughnut'),
    ('couch', 'sofa'),
    ('potted plant', 'pot plant'),
    ('dining table', 'dinning table'),
    ('tv', 'tv monitor', 'television', 'television set', 'television receiver', 'tv or monitor', 'moniter/tv',
     'monitor/tv'),
    ('laptop', 'laptop computer'),
    ('mouse', 'computer mouse', 'mouse_(computer_equipment)'),
    ('remote', 'remote control'),
    ('keyboard', 'computer keyboard'),
    ('cell phone', 'mobile phone', 'cellular telephone', 'cellular phone'),
    ('microwave', 'microwave oven'),
    ('refrigerator', 'fridge'),
    ('hair drier', 'hair dryer'),
)
EVERY_CLASS = 24  # up to so many classes are written one a line
SHOWN_NAMES = 60  # a longer list of names is cut


def normalised(name: str) -> str:
    """A name without case, spaces, underscores and hyphens; the name itself where nothing else is in it."""
    return re.sub(r'[\s_\-]+', '', name).casefold() or name


CANONICAL = {normalised(alias): normalised(group[0]) for group in ALIASES for alias in group}


def canonical(name: str) -> str:
    """The normalised name, for an alias that of the first name of its group."""
    return CANONICAL.get(normalised(name), normalised(name))


MATCHERS: tuple[Callable[[str], str], ...] = (str, normalised, canonical)  # str: as it is written


@dataclass(frozen=True)
class ClassRows:
    """Where the row of every written class comes from."""

    names: tuple[str | None, ...]  # of the C written classes, None for each where only their number is known
    sources: tuple[int | None, ...]  # for each, the row of the file it takes, None for a row drawn anew
    source_names: tuple[str, ...] | None = None  # of the file's classes, None where they are not known
    notes: tuple[str, ...] = ()  # what a person should know about the match, one line each

    @property
    def kept(self) -> int:
        """How many rows come from the file."""
        return sum(row is not None for row in self.sources)

    @property
    def new_classes(self) -> list[str | int]:
        """The classes that no row of the file means: their names, or their places where they have none."""
        return [row if name is None else name
                for row, (name, source) in enumerate(zip(self.names, self.sources, strict=True)) if source is None]

    def source_name(self, row: int | None) -> str | None:
        """Name of a class of the file, None where it is not known."""
        return self.source_names[row] if self.source_names is not None and row is not None else None

    def report(self) -> list[dict[str, Any]]:
        """Plain entries ``name``, ``source``, ``source_row``, one for each written class."""
        return [dict(name=name, source=self.source_name(row), source_row=row)
                for name, row in zip(self.names, self.sources, strict=True)]

    def table(self) -> list[str]:
        """Kept and new rows for a person: one class a line, compact where there are many."""
        if self.sources == tuple(range(len(self.names))) and self.names == (self.source_names or self.names):
            return [f'{len(self.names):,} classes: all rows kept in their places']
        entries = list(zip(map(str, self.names), self.sources, strict=True))
        kept = [f'{name} <- {self.source_name(row)} ({row})' for name, row in entries if row is not None]
        new = [name for name, row in entries if row is None]
        lines = [f'{len(entries):,} classes: {self.kept:,} rows kept by name, {len(new):,} new']
        if self.source_names is None:
            return lines
        if len(entries) <= EVERY_CLASS:
            return lines + [f'kept  {line}' for line in kept] + [f'new   {name}' for name in new]
        same = [f'{name} ({row})' for name, row in entries if row is not None and name == self.source_name(row)]
        renamed = [f'{name} <- {self.source_name(row)} ({row})' for name, row in entries
                   if row is not None and name != self.source_name(row)]
        parts = (('kept, same name', same), ('kept, other name', renamed), ('new', new))
        return lines + [f'{label}: {listed(names)}' for label, names in parts if names]


def listed(names: Sequence[str]) -> str:
    """Names for one line, cut after :data:`SHOWN_NAMES`."""
    more = f' and {len(names) - SHOWN_NAMES:,} more' if len(names) > SHOWN_NAMES else ''
    return ', '.join(names[:SHOWN_NAMES]) + more


def match_classes(target: Sequence[str], source: Sequence[str]) -> ClassRows:
    """Find every new class among the classes of a file, by name.

    1. Equal names are matched, then those equal when normalised, then aliases; within each, earlier classes first.
    2. A row of the file goes to one class only; a class that comes too late starts anew, and a note says why.

    Args:
        target: Names of the new classes, each once.
        source: Names of the file's classes in the order of their rows.
    """
    sources: list[int | None] = [None] * len(target)
    owners: dict[int, int] = {}
    for key in MATCHERS:
        rows = rows_by_key(source, key)
        for index, name in enumerate(target):
            free = [row for row in rows.get(key(name), ()) if row not in owners]
            if sources[index] is None and free:
                sources[index] = free[0]
                owners[free[0]] = index
    notes = colliding_names(target)
    rows = rows_by_key(source, canonical)
    for index, name in enumerate(target):
        taken = rows.get(canonical(name), ())
        if sources[index] is None and taken:
            winner = target[owners[taken[0]]]
            notes.append(f'{name!r} and {winner!r} are one class of the file; only {winner!r} keeps its row')
    return ClassRows(tuple(target), tuple(sources), tuple(source), tuple(notes))


def new_rows(names: Iterable[str | None], why: str) -> ClassRows:
    """Rows that are all drawn anew; ``why`` none is kept goes to the notes."""
    names = tuple(names)
    return ClassRows(names, (None,) * len(names), notes=(why,))


def all_rows(names: Sequence[str] | None, count: int) -> ClassRows:
    """Every row of a file of ``count`` classes kept in its place; their names where they are known."""
    written = tuple(names) if names is not None else (None,) * count
    return ClassRows(written, tuple(range(count)), None if names is None else tuple(names))


def rows_by_key(names: Sequence[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    """The rows of every key, in order."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows[key(name)].append(row)
    return rows


def colliding_names(names: Sequence[str]) -> list[str]:
    """One note for each group of names that differ only in case, spaces, underscores or hyphens."""
    return [f'{" and ".join(repr(names[row]) for row in rows)} differ only in case, spaces, underscores or hyphens; '
            'if they are one class, list it once' for rows in rows_by_key(names, normalised).values() if len(rows) > 1]
