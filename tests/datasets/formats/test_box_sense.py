"""Boxes written as they are not read are refused, and sound ones never are."""
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.box_sense import BoxSense

SIZE = (640, 480)


def drawn(corners: bool, count: int = 40) -> list[list[float]]:
    """Sound boxes all over a picture, written as corners or as corner and size."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(0, SIZE, (count, 2, 2)), axis=1).reshape(count, 4)
    if not corners:
        ends[:, 2:] -= ends[:, :2]
    return ends.round(1).tolist()


def counted(corners: bool, boxes: list[list[float]]) -> BoxSense:
    """The sense of boxes in one image, read as corners or as corner and size."""
    sense = BoxSense(corners)
    for box in boxes:
        sense.count(box, SIZE, 'image a.jpg')
    return sense


@pytest.mark.parametrize('corners', [False, True])
def test_sound_boxes_pass(corners: bool) -> None:
    for count in (1, 4, 40):
        counted(corners, drawn(corners, count)).refuse('train', 'f')
    assert counted(corners, drawn(corners)).lines('train') == []


@pytest.mark.parametrize(('corners', 'written'), [(False, 'x1, y1, x2, y2'), (True, 'x, y, width, height')])
def test_the_other_reading_is_refused(corners: bool, written: str) -> None:
    with pytest.raises(UserError, match=f'train: the boxes in f seem to be written as {written}: .*40 are sound'):
        counted(corners, drawn(not corners)).refuse('train', 'f')


def test_relative_boxes_are_refused_few_of_them_said() -> None:
    relative = (np.array(drawn(False)) / (SIZE * 2)).tolist()
    with pytest.raises(UserError, match=r'40 of 46 boxes in f have no number above 1.5 .*multiply'):
        counted(False, relative + drawn(False, 6)).refuse('train', 'f')
    sense = counted(False, relative[:2] + drawn(False))
    sense.refuse('train', 'f')
    assert sense.lines('train')[0].startswith('train: 2 of 42 boxes have relative coordinates (first: image a.jpg, [')


def test_single_boxes_beyond_their_picture_are_said() -> None:
    sense = counted(False, [[600, 400, 90, 50], [600, 400, 45, 50], *drawn(False)])
    sense.refuse('train', 'f')
    assert sense.lines('train') == [
        'train: 1 of 42 boxes reach beyond their picture (first: image a.jpg, [600, 400, 90, 50])']


def test_boxes_of_other_pictures_are_refused() -> None:
    with pytest.raises(UserError, match=r'5 of 5 boxes in f reach beyond their picture .*of other pictures'):
        counted(True, [[600, 400, 700 + i, 500] for i in range(5)]).refuse('train', 'f')
