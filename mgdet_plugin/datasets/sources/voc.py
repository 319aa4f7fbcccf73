"""Pascal VOC's XML files, with or without lists of splits (``ImageSets/Main``), in any folders."""
from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.formats.voc_files import voc_box, voc_image_size, voc_root
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Files, Hints, Picture, split_of
from mgdet_plugin.datasets.sources.picture_places import PicturePlaces

LOOKS = '.xml files of an <annotation>'
_START = re.compile(rb'<annotation[\s>]')
_SNIFFED = 2 ** 12  # bytes
_LISTS = ('train', 'val', 'test', 'trainval')
Corners = tuple[str, tuple[float, ...], bool]  # class, xmin, ymin, xmax, ymax as written, difficult


def find(files: Files) -> list[Path]:
    """The annotation files."""
    found = []
    for path in files.ending('.xml'):
        with path.open('rb') as stream:
            if _START.search(stream.read(_SNIFFED)):
                found.append(path)
    return found


def read(files: Files, found: list[Path], hints: Hints) -> Annotated:
    """Read them; classes are in the order of the hints, else of the alphabet.

    Coordinates count from 1, as mmdet's XMLDataset reads them, unless one of the set is 0: then they count from 0.

    Raises:
        UserError: a file that is no annotation, or a class that the hints do not name.
    """
    splits, notes = _splits(files, found)
    if splits:
        unlisted = len(found) - len(splits)
        found = [path for path in found if path in splits]
        if unlisted:
            notes.append(f'{unlisted:,} annotation files left out, no list of a split names them')
    places = PicturePlaces(files.root, hints.images)
    roots = {path: voc_root(path) for path in found}
    objects = {path: _objects(path, root) for path, root in roots.items()}
    first = 0 if any(min(values[:2]) == 0 and max(values) > 0 for each in objects.values() for _, values, _ in each
                     ) else 1
    if not first:
        notes.append('coordinates count from 0 (some are 0); VOC itself counts from 1')
    pictures, missing = [], []
    for path, root in roots.items():
        name = root.findtext('filename') or ''
        place = places.find(path.stem, path, by_stem=True) or (places.find(name, path) if name else None)
        if place is None:
            missing.append(name or path.stem)
            continue
        boxes = tuple(Box(name, (x1 - first, y1 - first, x2 - x1, y2 - y1), difficult)
                      for name, (x1, y1, x2, y2), difficult in objects[path])
        split = splits.get(path) or split_of(path.relative_to(files.root).parent)
        pictures.append(Picture(place, boxes, split, voc_image_size(path, root)))
    seen = sorted({name for each in objects.values() for name, _, _ in each})
    if not seen:
        raise UserError(f'{files.given}: none of {len(found):,} VOC annotation files has an object; there is nothing '
                        'to train on')
    unknown = sorted(set(seen) - set(hints.classes or seen))
    if unknown:
        raise UserError(f'--classes does not name {some(unknown)}, which the annotations have; name all of them')
    return Annotated(f'Pascal VOC ({len(found):,} .xml files{", with lists of splits" if splits else ""})', files.given,
                     hints.classes or checked_names(seen, str(files.given)), tuple(pictures), tuple(missing),
                     tuple(notes))


def _objects(path: Path, root: ET.Element) -> list[Corners]:
    """The objects of an annotation file."""
    found = []
    for index, element in enumerate(root.findall('object')):
        name = (element.findtext('name') or '').strip()
        if not name:
            raise UserError(f'{path}: object {index} has no name')
        values = tuple(voc_box(path, index, element))
        found.append((name, values, int(element.findtext('difficult', '0')) > 0))
    return found


def _splits(files: Files, found: list[Path]) -> tuple[dict[Path, str], list[str]]:
    """Annotation file -> its split, by lists of names; empty without lists. VOC's trainval counts where train lacks."""
    lists = [path for path in files.ending('.txt') if path.stem in _LISTS]
    lists = [path for path in lists if path.parent.name == 'Main'] or lists
    with_train = {path.parent for path in lists if path.stem == 'train'}
    by_name: dict[str, list[Path]] = {}
    for path in found:
        by_name.setdefault(path.stem, []).append(path)
    splits: dict[Path, str] = {}
    unknown = []
    for each in lists:
        if each.stem == 'trainval' and each.parent in with_train:
            continue
        base = each.parents[2] if each.parent.name == 'Main' else each.parent
        for line in filter(str.strip, each.read_text(encoding='utf-8', errors='replace').splitlines()):
            name = Path(re.sub(r'\s+-?[01]$', '', line.strip())).name
            paths = by_name.get(name) or by_name.get(Path(name).stem) or []
            own = [path for path in paths if path.is_relative_to(base)]
            splits |= dict.fromkeys(own, split_of(Path(each.stem)) or 'train')
            unknown += [] if own else [name]
    if unknown and splits:
        return splits, [f'{len(unknown):,} names in lists of splits have no annotation file (first: {unknown[0]})']
    return splits, []
