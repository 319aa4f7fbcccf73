"""COCO <-> VOC <-> YOLO <-> lines <-> table: whatever the boxes, they come back from each format and through all."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdet_plugin.datasets.sources.annotated import Box, Picture
from mgdet_plugin.datasets.sources.find import read_annotated
from mgdet_plugin.prepare.coco_writing import pictures_root, prove_arrived
from mgdet_plugin.prepare.coco_writing import write_coco as write_product
from tests.support.annotated_sets import (
    CLASSES,
    picture,
    write_coco,
    write_csv,
    write_lines,
    write_names,
    write_voc,
    write_yolo,
)

NAMES = ('a.png', 'b with spaces.png', '3.png')


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A box of whole pixels inside of 64 x 48."""
    x, y = draw(st.integers(0, 62)), draw(st.integers(0, 46))
    return Box(draw(st.sampled_from(CLASSES)),
               (x, y, draw(st.integers(1, 64 - x)), draw(st.integers(1, 48 - y))))


sets = st.lists(st.lists(boxes(), max_size=5), min_size=3, max_size=3).filter(any)


def yolo(folder: Path, pictures: Sequence[Picture]) -> None:
    write_yolo(folder / 'labels', pictures)
    write_names(folder / 'classes.txt')


def lines(folder: Path, pictures: Sequence[Picture]) -> None:
    write_lines(folder / 'all.txt', pictures)
    write_names(folder / 'classes.txt')


WRITERS: dict[str, Callable[[Path, Sequence[Picture]], object]] = dict(
    coco=write_coco, voc=lambda folder, pictures: write_voc(folder / 'xml', pictures), yolo=yolo, lines=lines,
    csv=lambda folder, pictures: write_csv(folder / 'boxes.csv', pictures))


def through(form: str, folder: Path, pictures: Sequence[Picture]) -> list[Picture]:
    """Write in a format, read again; the pictures in the order they were in."""
    made = folder / form
    copies = [replace(each, path=picture(made / 'images' / each.path.name)) for each in pictures]
    WRITERS[form](made, copies)
    found = {each.path.name: each for each in read_annotated(made).pictures}
    return [replace(each, boxes=found[each.path.name].boxes) for each in copies]


def same(found: Sequence[Picture], wanted: Sequence[Picture], allowed: float) -> bool:
    return all(
        [box.name for box in one.boxes] == [box.name for box in other.boxes]
        and all(a == pytest.approx(b, abs=allowed) for one_box, other_box in zip(one.boxes, other.boxes)
                for a, b in zip(one_box.bbox, other_box.bbox)) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize('form', WRITERS)
@settings(max_examples=15, deadline=None)
@given(sets)
def test_boxes_come_back_from_each_format(form, drawn):
    with tempfile.TemporaryDirectory() as folder:
        pictures = [Picture(Path(name), tuple(each)) for name, each in zip(NAMES, drawn)]
        assert same(through(form, Path(folder), pictures), pictures, 1e-9)


@settings(max_examples=10, deadline=None)
@given(sets, st.permutations(list(WRITERS)))
def test_boxes_come_back_through_all_formats_in_any_order(drawn, order):
    with tempfile.TemporaryDirectory() as folder:
        pictures = wanted = [Picture(Path(name), tuple(each)) for name, each in zip(NAMES, drawn)]
        for form in order:
            pictures = [replace(each, boxes=tuple(
                replace(box, bbox=tuple(round(value, 6) for value in box.bbox)) for box in each.boxes))
                for each in through(form, Path(folder), pictures)]
        assert same(pictures, wanted, 1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.builds(
    Box, st.sampled_from(CLASSES), st.tuples(*[st.floats(0, 40, width=32)] * 4), st.booleans()), max_size=6))
def test_what_the_product_writes_is_proven_box_by_box(drawn):
    """The proof holds for any numbers and fails for a box that is lost, moved or of another class."""
    with tempfile.TemporaryDirectory() as folder:
        image = Picture(picture(Path(folder, 'a.png')), tuple(drawn), 'train', (64, 48))
        root = pictures_root([image])
        write_product(Path(folder), dict(train=[image]), CLASSES, root)
        file = Path(folder, 'train.json')
        others = [(*drawn, Box('ant', (1, 1, 2, 2)))]
        if drawn:
            first = drawn[0]
            others += [tuple(drawn[1:]), (replace(first, bbox=(first.bbox[0] + 0.01, *first.bbox[1:])), *drawn[1:]),
                       (replace(first, ignore=not first.ignore), *drawn[1:]),
                       (replace(first, name='bee' if first.name == 'ant' else 'ant'), *drawn[1:])]
        for other in others:
            with pytest.raises(RuntimeError, match=r'a\.png are not those'):
                prove_arrived(file, [replace(image, boxes=other)], root)
