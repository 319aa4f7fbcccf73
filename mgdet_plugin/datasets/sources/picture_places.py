"""Where the pictures lie that annotations name: paths are often those of another machine or relative to who knows."""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import is_below
from mgdet_plugin.datasets.old_images import pictures_below
from mgdet_plugin.datasets.sources.annotated import split_of


class PicturePlaces:
    """Finds pictures below a folder by what annotations call them.

    Args:
        root: the folder; walked when a name is first not found where it says.
        images: a folder that is looked in first, None where nobody named one.
    """

    def __init__(self, root: Path, images: Path | None = None) -> None:
        self.root = images or root
        self.first = [images] if images else []
        self.given = [root, *self.first, Path()]  # a person's folders: nothing outside them is opened
        self._by_stem: dict[str, list[Path]] | None = None

    def find(self, name: str, told_by: Path, by_stem: bool = False) -> Path | None:
        """The picture of a name, None where there is none.

        It is looked for from the folder of the file that names it, from the root and from the working folder; then
        anywhere below the root by its file name (by that without ending, if asked), not in a folder of another
        split than the name's own folders tell: the one in a folder of the same split, whose folders are most like
        those of the name and of the file that names it.

        Raises:
            UserError: several are alike, or it lies in none of the folders that a person gave.
        """
        name = name.replace('\\', '/')
        if not by_stem:
            told = self.chosen([folder / name for folder in (*self.first, told_by.parent, self.root, Path())],
                               os.path.isfile, f'{told_by} names the picture {name}')
            if told is not None:
                return told
        wanted = Path(name)
        found = self._named(wanted.stem if not by_stem else wanted.name)
        if not by_stem:
            found = [path for path in found if path.name == wanted.name]
        own = split_of(wanted.parent)
        if own is not None:  # what is called alike in another split is another picture
            found = [path for path in found if split_of(Path(*_below(path, self.root))) in (own, None)]
        if len(found) < 2:
            return found[0] if found else None
        parts = {*wanted.parent.parts, *_below(told_by, self.root)}
        split = split_of(Path(*_below(told_by, self.root), told_by.stem))
        scores = [(split_of(Path(*_below(path, self.root))) == split, len(parts & set(_below(path, self.root))))
                  for path in found]
        best = [path for path, score in zip(found, scores) if score == max(scores)]
        if len(best) > 1:
            raise UserError(f'{told_by} names the picture {name}, and both {best[0]} and {best[1]} may be meant; give '
                            'the folder of the pictures by --images')
        return best[0]

    def chosen(self, places: Iterable[Path], is_there: Callable[[Path], bool], who: str) -> Path | None:
        """The first of some places that is there and in a folder that a person gave, None where none is.

        Raises:
            UserError: one is there, and outside of them: a file of annotations may be anybody's.
        """
        there = [place for place in places if is_there(place)]
        found = next((place for place in there if is_below(place, self.given)), None)
        if there and found is None:
            folder = os.path.normpath(there[0].parent)
            raise UserError(f'{who}, which lies outside {self.root}; what annotations name is opened below the folder '
                            f'given alone: to allow it give its folder, by --images {folder} (in a config by '
                            'data_prefix=dict(img=...))')
        return found

    def all(self) -> list[Path]:
        """Every picture below the root, in order of their paths."""
        return sorted(Path(path) for path in pictures_below(str(self.root)))

    def _named(self, stem: str) -> list[Path]:
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for path in self.all():
                self._by_stem[path.stem].append(path)
        return self._by_stem.get(stem, [])


def _below(path: Path, root: Path) -> tuple[str, ...]:
    """The folders between a root and a file."""
    return Path(os.path.relpath(path.parent, root)).parts
