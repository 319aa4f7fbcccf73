"""Boxes that cannot be objects: one rule in words and on tensors, and what mmdet does without it."""
import math
from collections.abc import Callable

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import DropDegenerateBoxes, Letterbox
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason

# box xyxy in an image of 64 x 48 -> the reason it is dropped, None if it stays
BOXES = {
    (10, 10, 20, 20): None,
    (-5, -5, 1, 1): None,
    (63, 47, 99, 99): None,
    (10, 10, 11, 11): None,
    (10, 10, 10, 20): 'zero or negative size',
    (10, 20, 20, 10): 'zero or negative size',
    (10, 10, 10.5, 20): 'smaller than 1 pixel',
    (64, 10, 80, 20): 'outside of its image',
    (10, -20, 20, 0): 'outside of its image',
    (math.nan, 10, 20, 20): 'not a number, or beyond all pictures',
    (10, 10, math.inf, 20): 'not a number, or beyond all pictures',
    (10, 10, 1e30, 20): 'not a number, or beyond all pictures',
}


@pytest.mark.parametrize(('box', 'reason'), BOXES.items())
def test_reason(box: tuple[float, ...], reason: str | None) -> None:
    assert degenerate_reason(box, (64, 48)) == reason


def test_transform_follows_the_rule_and_keeps_all_aligned() -> None:
    results = {
        'img_shape': (48, 64),
        'gt_bboxes': HorizontalBoxes([list(box) for box in BOXES]),
        'gt_bboxes_labels': np.arange(len(BOXES)),
        'gt_ignore_flags': np.arange(len(BOXES)) == 1,
    }
    results = DropDegenerateBoxes()(results)
    assert results['gt_bboxes'].tensor.tolist() == [list(box) for box, reason in BOXES.items() if reason is None]
    assert results['gt_bboxes_labels'].tolist() == [0, 1, 2, 3]
    assert results['gt_ignore_flags'].tolist() == [False, True, False, False]


def test_min_size_is_the_smallest_that_stays() -> None:
    results = {'img_shape': (48, 64), 'gt_bboxes': HorizontalBoxes([[0., 0., 4., 9.], [0., 0., 3.9, 9.]])}
    assert DropDegenerateBoxes(min_size=4)(results)['gt_bboxes'].tensor.tolist() == [[0., 0., 4., 9.]]


def test_no_boxes_and_boxes_all_dropped() -> None:
    results = {'img_shape': (48, 64), 'gt_bboxes': HorizontalBoxes([]), 'gt_bboxes_labels': np.zeros(0, int)}
    assert DropDegenerateBoxes()(results)['gt_bboxes'].tensor.shape == (0, 4)
    results = {'img_shape': (48, 64), 'gt_bboxes': HorizontalBoxes([[1., 1., 1., 1.]]),
               'gt_bboxes_labels': np.zeros(1, int)}
    results = DropDegenerateBoxes()(results)
    assert results['gt_bboxes'].tensor.shape == (0, 4) and results['gt_bboxes_labels'].shape == (0,)


@pytest.mark.parametrize('after', [False, True])
def test_the_picture_a_box_is_in(after: bool) -> None:
    """Not the network's input: a box at the right of a large picture is in it, one beyond a small one is not."""
    for side, kept in ((200, [[90, 0, 190, 10]]), (80, [])):
        results = dict(img=np.zeros((side, side, 3), np.uint8), img_shape=(side, side), ori_shape=(side, side))
        boxes = dict(gt_bboxes=HorizontalBoxes([[90, 0, 190, 10]]), gt_bboxes_labels=np.array([1]))
        steps = [Letterbox(scale=(96, 96)), DropDegenerateBoxes()]
        if after:
            results = steps[1](dict(steps[0](results), **boxes))
        else:
            results = steps[0](steps[1](dict(results, **boxes)))
        assert results['gt_bboxes_labels'].tolist() == [1] * len(kept)
        assert not after or results['gt_bboxes'].tensor.tolist() == kept


@pytest.mark.parametrize('min_size', [0, -1, math.nan, math.inf, '1'])
def test_refuses_sizes_that_are_not_positive(min_size: object) -> None:
    with pytest.raises(UserError, match='min_size'):
        DropDegenerateBoxes(min_size=min_size)  # type: ignore[arg-type]


def test_voc_boxes_of_zero_width_are_dropped_only_by_the_transform(make_voc: Callable[..., Config]) -> None:
    cfg = make_voc(('cat', (11, 11, 31, 31)), ('dog', (20, 5, 20, 25)))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert [instance['bbox'] for instance in dataset.get_data_info(0)['instances']] == [
        [10, 10, 30, 30], [19, 4, 19, 24]]  # XMLDataset keeps both
    sample = dataset[0]
    assert sample['gt_bboxes'].tensor.tolist() == [[10, 10, 30, 30]]
    assert sample['gt_bboxes_labels'].tolist() == [0]


def test_coco_dataset_skips_what_the_check_counts(make_coco: Callable[..., Config]) -> None:
    def edit(content: dict) -> None:
        content['annotations'][0]['bbox'] = [10, 10, 0, 5]
        content['annotations'][2]['bbox'] = [70, 10, 5, 5]

    dataset = DATASETS.build(make_coco(edit).train_dataloader.dataset)
    assert sum(len(dataset.get_data_info(i)['instances']) for i in range(2)) == 2
