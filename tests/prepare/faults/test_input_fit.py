"""How boxes lie in the input, and how the doctor's count of cells agrees with what the assigner does."""
from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.prepare.faults.input_fit import Fit, NetworkInput, PlacedBoxes, fit, fit_findings, place
from mgdet_plugin.prepare.faults.picture_records import PictureBox, PictureRecord
from tests.conftest import ANCHORS, ROOT, STRIDES

SIDE = 320
CORNER = st.floats(-20, SIDE, width=32)
LENGTH = st.floats(2, 200, width=32)
BOXES = st.lists(st.tuples(CORNER, CORNER, LENGTH, LENGTH), min_size=1, max_size=12)


def network(conflict: str = 'reference', **fields: object) -> NetworkInput:
    """model5's anchors at 320 pixels."""
    return NetworkInput(**{**dict(size=(SIDE, SIDE), centred=True, anchors=ANCHORS, strides=STRIDES,
                                  conflict=conflict), **fields})


def record(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (SIDE, SIDE)) -> PictureRecord:
    """A picture with boxes [x, y, width, height]."""
    return PictureRecord('a.png', size, tuple(PictureBox((x, y, x + w, y + h), 0) for x, y, w, h in boxes))


def fitted(*records: PictureRecord, conflict: str = 'reference') -> tuple[PlacedBoxes, Fit]:
    """The boxes of pictures, and how they fit."""
    boxes = place(records, network(conflict))
    return boxes, fit(boxes, network(conflict))


@settings(deadline=None, max_examples=40)
@given(pictures=st.lists(BOXES, min_size=1, max_size=3), conflict=st.sampled_from(['reference', 'nearest']))
def test_cells_are_counted_as_the_assigner_gives_them(pictures: list, conflict: str) -> None:
    """Every cell that is claimed goes to one object, and two centres in a cell are told by counting them."""
    boxes, found = fitted(*(record(*each) for each in pictures), conflict=conflict)
    blocks, centres = [], []
    for picture, (x1, y1, x2, y2), best in zip(boxes.picture.tolist(), boxes.corners.tolist(), found.anchor.tolist()):
        level, stride = best // 3, STRIDES[best // 3]
        col, row = int((x1 + x2) / 2 // stride), int((y1 + y2) / 2 // stride)
        centres.append((picture, level, col, row))
        blocks.append({(picture, level, col + dx, row + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)
                       if 0 <= col + dx < SIDE // stride and 0 <= row + dy < SIDE // stride})
    counts = Counter(centres)
    claimed = set().union(*blocks)
    assert found.cells.tolist() == [len(each) for each in blocks]
    assert found.shares_centre.tolist() == [counts[each] > 1 for each in centres]
    assert int(found.held.sum()) == len(claimed)
    assert bool((found.held <= found.cells).all())


def test_boxes_lie_where_the_letterbox_or_the_resize_puts_them() -> None:
    wide = record((10, 20, 30, 40), size=(640, 320))
    assert place([wide], network()).corners.tolist() == [[5, 90, 20, 110]]
    assert place([wide], network(centred=False)).corners.tolist() == [[5, 10, 20, 30]]


def test_boxes_that_are_not_trained_on_are_left_out() -> None:
    picture = PictureRecord('a.png', (SIDE, SIDE), (
        PictureBox((5, 5, 5, 9), 0), PictureBox((5, 5, 50, 90), 0, ignored=True), PictureBox((400, 5, 450, 9), 0)))
    assert not place([picture], network()).owners
    boxes, found = fitted(picture)
    assert not list(fit_findings(boxes, network(), found))


def test_the_worst_come_first() -> None:
    boxes, found = fitted(record((10, 10, 40, 3), (100, 10, 40, 2), (10, 200, 100, 80)))
    findings = {each.kind: each for each in fit_findings(boxes, network(), found)}
    assert [each.boxes[0][0] for each in findings['tiny'].examples] == [100, 10]
    assert findings['tiny'].what == '2 of 3 training boxes have a side below 4 pixels in the input of 320 x 320'


@pytest.mark.parametrize(('change', 'expected'), [
    ({}, ((192, 192), True)),
    ({'train_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(320, 256))]},
     ((320, 256), False))])
def test_the_input_is_that_of_the_training_pipeline(change: dict, expected: tuple) -> None:
    cfg = Config.fromfile(ROOT / 'configs/mgdet_nano_stage1.py')
    cfg.merge_from_dict(change)
    into = NetworkInput.of_config(cfg)
    assert (into.size, into.centred) == expected and into.strides == (32, 16, 8)
    assert into.anchors[0][0] == (36, 58)
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile')]
    with pytest.raises(UserError, match='no Letterbox and no Resize'):
        NetworkInput.of_config(cfg)
    cfg.model.bbox_head.type = 'YOLOV3Head'
    with pytest.raises(UserError, match='bbox_head is YOLOV3Head'):
        NetworkInput.of_config(cfg)


def test_an_anchor_that_none_takes_is_named() -> None:
    boxes, found = fitted(record((10, 10, 112, 74)))
    [finding] = [each for each in fit_findings(boxes, network(), found) if each.kind == 'unused_anchor']
    assert finding.count == 8 and '112x74' not in finding.what and torch.isclose(found.best, torch.ones(1)).all()
