"""What is left out is counted and named; what cannot be meant is refused."""
from __future__ import annotations

from pathlib import Path

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Annotated, Box, Picture
from mgdet_plugin.prepare.sound_set import sound_set
from tests.support.annotated_sets import picture

GOOD = Box('ant', (4, 6, 10, 12))


def annotated(pictures: list[Picture], missing: tuple[str, ...] = ()) -> Annotated:
    return Annotated('a format', Path('data'), ('ant', 'bee'), tuple(pictures), missing)


def test_each_kind_of_loss_has_its_line(tmp_path):
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no picture')
    boxes = (GOOD, Box('bee', (5, 5, 0, 4)), Box('bee', (70, 5, 4, 4)), Box('ant', (5, 5, 0.5, 4)), GOOD, GOOD, GOOD,
             Box('bee', (1, 1, 9, 9), ignore=True), Box('ant', (50, 6, 60, 12)))
    found = sound_set(annotated([Picture(picture(tmp_path / 'a.png'), boxes, size=(48, 64)),
                                 Picture(picture(tmp_path / 'b.png', shade=1), ()), Picture(broken, (GOOD, ))],
                                ('gone.png', )))
    text = '\n'.join(found.lines)
    for line in ('left out (zero or negative size): 1 box: bee 1 (first: a.png, [5, 5, 0, 4])',
                 'left out (outside of its image): 1 box: bee 1', 'left out (smaller than 1 pixel): 1 box: ant 1',
                 '1 annotated pictures left out, not there: gone.png', f'left out, unreadable: {broken}',
                 '1 crowd or difficult boxes kept as regions to be ignored (bee 1)',
                 'a.png is 64 x 48, said to be 48 x 64', '1 boxes reach beyond their picture and stay as they are'):
        assert line in text, line
    assert [len(each.boxes) for each in found.pictures] == [6, 0] and found.pictures[0].size == (64, 48)


@pytest.mark.parametrize(('boxes', 'missing', 'cause'), [
    ([GOOD], ('x', 'y'), 'most of them: give the folder of the pictures by --images'),
    ([Box('ant', (5, 5, 0, 0))] * 2 + [GOOD], (), 'most of them, too many to be meant'),
    ([Box('ant', (0.1, 0.1, 0.5, 0.5))] * 3, (), 'as shares of the picture have'),
    ([Box('ant', (30 + each, 20 + each, 40 + each, 30 + each)) for each in range(9)], (), r'written as x1, y1, x2, y2'),
    ([], (), 'no box is left to train on'),
    ([Box('ant', (1, 1, 9, 9), ignore=True)], (), 'no box is left to train on')])
def test_what_cannot_be_meant_is_refused(boxes, missing, cause, tmp_path):
    with pytest.raises(UserError, match=cause) as raised:
        sound_set(annotated([Picture(picture(tmp_path / 'a.png'), tuple(boxes))], missing))
    assert '\n' not in str(raised.value)


def test_a_picture_in_two_places_is_refused(tmp_path):
    one = Picture(picture(tmp_path / 'a.png'), (GOOD, ), 'train')
    with pytest.raises(UserError, match='1 pictures are named more than once'):
        sound_set(annotated([one, Picture(tmp_path / 'b' / '..' / 'a.png', (GOOD, ), 'val')]))
