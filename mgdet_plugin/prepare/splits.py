"""Which pictures train and which measure: as given, else by the hash of each picture's content."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import content_hash
from mgdet_plugin.datasets.sources.annotated import SPLITS, Picture

_MANY = 1000  # pictures from which a tenth is enough to measure on
_FEW_SHARE, _MANY_SHARE = 0.15, 0.1
_WHOLE = 2 ** 256


@dataclass(frozen=True)
class Split:
    """Pictures, each with its split, and how they were split in a line."""

    pictures: tuple[Picture, ...]
    line: str

    def of(self, name: str) -> list[Picture]:
        """The pictures of one split."""
        return [each for each in self.pictures if each.split == name]

    @property
    def names(self) -> list[str]:
        """The splits that have pictures, in order."""
        return [name for name in SPLITS if self.of(name)]


def all_measured(pictures: Sequence[Picture]) -> Split:
    """All pictures as the test set, whatever they were."""
    return Split(tuple(replace(each, split='test') for each in pictures), 'measured on alone')


def split_pictures(pictures: Sequence[Picture]) -> Split:
    """Keep the splits that are given; where there is no val, cut it (and test, where nothing is split) from the rest.

    A picture's side follows from its content alone: copies are on one side, and pictures that are added later move none
    that was there.

    Raises:
        UserError: there is nothing to train on, or too few pictures to split.
    """
    if 'train' not in {each.split for each in pictures} and len({each.split for each in pictures}) > 1:
        pictures = [replace(each, split=each.split or 'train') for each in pictures]  # the rest of what is measured on
    given = {each.split for each in pictures}
    if {'train', 'val'} <= given:
        outside = sum(each.split is None for each in pictures)
        left = f'; {outside:,} pictures of no split left out' if outside else ''
        return Split(tuple(each for each in pictures if each.split), f'splits as given{left}')
    if len(given) > 1 and 'train' not in given:
        raise UserError(f'there are pictures of {" and ".join(sorted(map(str, given)))} and none to train on; add a '
                        'train set, or give one folder or file alone')
    cut = ('val', ) if len(given) > 1 and 'test' in given else ('val', 'test')
    kept = [each for each in pictures if len(given) > 1 and each.split == 'test']
    free = [each for each in pictures if len(given) == 1 or each.split != 'test']
    share = _MANY_SHARE if len(free) >= _MANY else _FEW_SHARE
    hashes = [content_hash(each.path) for each in free]
    sides = cut_by_hash(set(hashes), cut, share)
    copies = len(hashes) - len(set(hashes))
    parts = ' and '.join(f'{share:.0%} {name}' for name in cut)
    said = (f'no val given: {parts} taken by the content of the pictures, the same at every call' +
            (f'; {copies:,} are copies of others and on their side' if copies else ''))
    return Split((*(replace(each, split=sides[key]) for each, key in zip(free, hashes)), *kept), said)


def cut_by_hash(hashes: set[str], cut: Sequence[str], share: float) -> dict[str, str]:
    """Hash -> split. Read as a number from 0 to 1, the first ``share`` is the first split of ``cut``, and so on.

    A split that would be empty takes the hash next to its place from train; of two contents one trains.

    Raises:
        UserError: there is one content alone.
    """
    ranked = sorted(hashes)
    if len(ranked) < 2:
        raise UserError(f'{len(ranked)} picture cannot be split into train and val; add more')
    cut = cut[:len(ranked) - 1]  # what is left of few contents when one trains
    places: defaultdict[str, list[str]] = defaultdict(list)
    for key in ranked:
        place = int(int(key, 16) / _WHOLE / share)
        places[cut[place] if place < len(cut) else 'train'].append(key)
    for name in cut:
        if not places[name]:
            donor = max(places, key=lambda each: len(places[each]))
            places[name].append(places[donor].pop(0))
    if not places['train']:
        donor = max(places, key=lambda each: len(places[each]))
        places['train'].append(places[donor].pop())
    return {key: name for name, keys in places.items() for key in keys}
