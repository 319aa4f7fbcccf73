"""Grid mask: what is covered, how much of it, and for how many pictures."""
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import GridMask
from mgdet_plugin.datasets.transforms.grid_mask import FILL, covered


def test_squares_where_they_are_counted_by_hand():
    mask = covered((8, 8), 4.0, 0.5, np.zeros(2), 0.0)
    unit = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4], bool)
    np.testing.assert_array_equal(mask, np.tile(unit, (2, 2)))
    shifted = covered((8, 8), 4.0, 0.5, np.array([2.0, 0]), 0.0)
    np.testing.assert_array_equal(shifted, np.tile(np.roll(unit, 2, 1), (2, 2)))


def test_the_covered_share_is_that_of_its_side_squared_whatever_the_turn():
    random = np.random.default_rng(0)
    for _ in range(10):
        cover, turn = random.uniform(0.2, 0.8), random.uniform(-np.pi, np.pi)
        mask = covered((300, 400), 20.0, cover, random.uniform(0, 20, 2), turn)
        assert mask.mean() == pytest.approx(cover ** 2, abs=0.02)


def test_pictures_are_covered_as_often_as_said_and_never_changed_in_place():
    np.random.seed(0)
    image, changed = np.full((40, 60, 3), 7, np.uint8), 0
    for _ in range(200):
        found = GridMask(prob=0.3).transform(dict(img=image, gt_bboxes='kept'))
        assert found['gt_bboxes'] == 'kept' and set(np.unique(found['img'])) <= {7, FILL}
        changed += (found['img'] != image).any()
    assert (image == 7).all() and 40 < changed < 80
    assert (GridMask(prob=0.0).transform(dict(img=image))['img'] is image)
    grey = GridMask(prob=1.0).transform(dict(img=image[..., 0]))['img']
    assert grey.shape == (40, 60) and 0 < (grey == FILL).mean() < 0.5


@pytest.mark.parametrize('fields', [dict(prob=2), dict(cover=0), dict(cover='x'), dict(angle=-1),
                                    dict(period=(0.5, 0.2)), dict(period=(0, 1)), dict(period=(0.1, ))])
def test_arguments_are_checked(fields):
    with pytest.raises(UserError, match='GridMask: '):
        GridMask(**fields)
