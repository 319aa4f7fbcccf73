"""Which pictures are the worst, and how they are drawn."""
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mgdet_plugin.runs.analysis.analysis import analyse
from mgdet_plugin.runs.analysis.evaluation_page import _caption, remarks
from mgdet_plugin.runs.analysis.evaluation_record import Evaluation
from mgdet_plugin.runs.analysis.matching import sorted_result
from mgdet_plugin.runs.analysis.picture_errors import (
    MOST_WRONG,
    PictureErrors,
    drawn_picture,
    picture_errors,
    worst_pictures,
)


def errors(wrong, missed):
    return PictureErrors(np.zeros(0), np.zeros(wrong), ['box'] * wrong, np.zeros(missed))


@pytest.fixture
def analysis(tmp_path):
    """Return a cat found, a cat missed, a dog on nothing and, of a bad score, another; then a picture without error."""
    Image.new('RGB', (200, 100), 'black').save(tmp_path / 'a.png')
    truth = [[10, 10, 40, 40], [100, 10, 40, 40]]
    found = [[10, 10, 40, 40], [150, 50, 40, 40], [60, 60, 9, 9]]
    first = sorted_result(1, str(tmp_path / 'a.png'), truth, [0, 0], [0, 0], [1600, 1600], found, [0.9, 0.8, 0.1],
                          [0, 1, 1])
    second = sorted_result(2, '', truth[:1], [0], [0], [1600], found[:1], [0.7], [0])
    return analyse([first, second], ('cat', 'dog'))


def test_what_is_wrong_on_a_picture(analysis):
    assert analysis.threshold == 0.7
    first, second = picture_errors(analysis)
    assert (first.right.tolist(), first.wrong.tolist(), first.kinds, first.missed.tolist()) == (
        [0], [1], ['background'], [1]) and first.total == 2
    assert second.total == 0 and second.right.tolist() == [0]
    assert picture_errors(analysis, 0.05)[0].wrong.tolist() == [1, 2] and picture_errors(analysis, 0.95)[1].total == 1


def test_the_worst_come_first_and_those_without_an_error_never():
    now = [errors(0, 0), errors(1, 2), errors(5, 0), errors(1, 0)]
    assert worst_pictures(now) == [2, 1, 3] and worst_pictures(now, count=1) == [2]
    before = [errors(0, 0), errors(0, 0), errors(4, 0), errors(2, 0)]
    assert worst_pictures(now, before) == [1, 2]  # the last has become better
    assert worst_pictures([errors(0, 0)]) == []


@pytest.mark.parametrize('weights', [1, 2])
def test_truth_and_detections_side_by_side(weights, analysis):
    """Right is green, wrong red, and a missed object dashed: each where it lies."""
    found = picture_errors(analysis)
    sheet = Image.open(BytesIO(drawn_picture([analysis] * weights, [found[0]] * weights, 0)))
    width = (sheet.width - 6 * weights) // (weights + 1)
    assert (width, sheet.height) == (380, 190)  # of 200 x 100
    pixels = np.asarray(sheet).astype(int)
    is_green, is_red = ((pixels[..., one] > pixels[..., other] + 60) for one, other in ((1, 0), (0, 1)))
    for panel in range(weights + 1):
        left = panel * (width + 6)
        of_panel = slice(left, left + width)
        middle = 30 * 380 // 200
        assert is_green[middle, of_panel][15:25].any()  # the left side of the cat that is found
        assert is_red[:, of_panel].any() and is_red[70 * 190 // 100, of_panel][280:].any() == (panel > 0)


def test_of_many_wrong_detections_the_surest_are_drawn(tmp_path):
    """The lower half of the picture holds the ones of lower scores."""
    Image.new('RGB', (200, 200), 'black').save(tmp_path / 'a.png')
    places = [(x, y) for y in (20, 120, 150, 175) for x in range(5, 190, 15)]
    found = [[x, y, 10, 10] for x, y in places]
    assert sum(y == 20 for _, y in places) > MOST_WRONG
    result = sorted_result(1, str(tmp_path / 'a.png'), [[90, 90, 15, 15]], [0], [0], [225], found,
                           [0.9 - 0.01 * index for index in range(len(found))], [0] * len(found))
    one = analyse([result], ('cat', ))
    errors = picture_errors(one, 0.0)[0]
    pixels = np.asarray(Image.open(BytesIO(drawn_picture([one], [errors], 0)))).astype(int)[:, 386:]
    red = np.argwhere(pixels[..., 0] > pixels[..., 1] + 60)
    assert len(errors.wrong) == len(found) and red[:, 0].max() < 100  # of 380
    evaluation = Evaluation('t', {'test set': {'after': one}})
    assert f'drawn are the {MOST_WRONG} wrong ones with the highest scores, {len(found) - MOST_WRONG} more are not' in (
        _caption(one, [picture_errors(one, 0.0)], 0))
    assert remarks(evaluation) == ['nothing that is found is right']  # and no class is called the weakest
    result = sorted_result(2, '', [[0, 0, 9, 9]] * 5, [0, 1, 2, 3, 4], [0] * 5, [81] * 5, [[0, 0, 9, 9]], [0.5], [4])
    lines = remarks(Evaluation('t', {'test set': {'after': analyse([result], 'abcde')}}))
    assert any(line.startswith('4 of 5 classes have an AP of 0: a, b, c') for line in lines)
