"""Boxes that a crop cut: what stays of them, and that mmdet's own steps leave them to be judged."""
import math

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import ClipBoxes

# box xyxy in an image of 64 x 48 -> (share of it inside, what is left of it)
BOXES = {
    (10., 10., 20., 20.): (1.0, (10., 10., 20., 20.)),
    (-5., 10., 5., 20.): (0.5, (0., 10., 5., 20.)),
    (-6., 10., 4., 20.): (0.4, (0., 10., 4., 20.)),
    (59., 43., 69., 53.): (0.25, (59., 43., 64., 48.)),
    (-10., -10., 74., 58.): (0.5378, (0., 0., 64., 48.)),
    (70., 10., 80., 20.): (0.0, None),
    (20., 20., 10., 10.): (1.0, None),
}


def sample(boxes):
    return {
        'img_shape': (48, 64),
        'gt_bboxes': HorizontalBoxes([list(box) for box in boxes]),
        'gt_bboxes_labels': np.arange(len(boxes)),
        'gt_ignore_flags': np.arange(len(boxes)) == 1,
    }


@pytest.mark.parametrize('least', [0, 0.25, 0.45, 0.5, 0.6, 1])
def test_what_stays_is_clipped_and_aligned(least):
    results = ClipBoxes(min_visibility=least)(sample(BOXES))
    stays = [index for index, (share, left) in enumerate(BOXES.values()) if left and share >= least]
    left = [left for _, left in BOXES.values()]
    assert results['gt_bboxes'].tensor.tolist() == [list(left[index]) for index in stays]
    assert results['gt_bboxes_labels'].tolist() == stays
    assert results['gt_ignore_flags'].tolist() == [index == 1 for index in stays]


def test_no_boxes():
    results = ClipBoxes()(sample([]))
    assert results['gt_bboxes'].tensor.shape == (0, 4)
    assert ClipBoxes()({'img_shape': (48, 64)}) == {'img_shape': (48, 64)}


def test_behind_an_affine_step_that_moves_boxes_out():
    """Moved by at most a quarter of the width, a box of the whole height keeps the share that stayed inside."""
    steps = [TRANSFORMS.build(dict(
        type='RandomAffine', max_rotate_degree=0.0, max_translate_ratio=0.25, scaling_ratio_range=(1.0, 1.0),
        max_shear_degree=0.0, bbox_clip_border=clip)) for clip in (True, False)]
    slivers = [0, 0]
    for seed in range(60):
        for index, affine in enumerate(steps):
            np.random.seed(seed)
            results = {**sample([(0., 0., 16., 48.)]), 'img': np.zeros((48, 64, 3), np.uint8)}
            found = ClipBoxes(min_visibility=0.5)(affine(results))['gt_bboxes'].tensor.tolist()
            slivers[index] += any((x2 - x1) * (y2 - y1) < 0.5 * 16 * 48 for x1, y1, x2, y2 in found)
            assert all(0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48 for x1, y1, x2, y2 in found)
    assert slivers[0] > 0 and slivers[1] == 0


@pytest.mark.parametrize('value', [-0.1, 1.1, math.nan, 'half', None])
def test_share_out_of_range(value):
    with pytest.raises(UserError, match=r'min_visibility must be a number in \[0, 1\], got'):
        ClipBoxes(min_visibility=value)
