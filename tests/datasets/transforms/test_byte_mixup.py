"""Mixup in whole numbers: the draws and boxes of mmdet's, and its pixels within a level."""
from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import MixUp
from mmdet.structures.bbox import HorizontalBoxes

from mgdet_plugin.datasets import ByteMixUp


def sample(size: tuple[int, int], boxes: int, seed: int) -> dict[str, Any]:
    """A sample of noise (h, w, 3) and boxes inside it."""
    draw = np.random.default_rng(seed)
    corner = torch.tensor(draw.uniform(0, [[size[1] / 2, size[0] / 2]] * boxes).reshape(-1, 2), dtype=torch.float32)
    extent = torch.tensor(draw.uniform(1, [[size[1] / 2, size[0] / 2]] * boxes).reshape(-1, 2), dtype=torch.float32)
    return dict(img=draw.integers(0, 256, (*size, 3), np.uint8), img_shape=size,
                gt_bboxes=HorizontalBoxes(torch.cat((corner, corner + extent), 1)),
                gt_bboxes_labels=draw.integers(0, 3, boxes), gt_ignore_flags=draw.integers(0, 2, boxes).astype(bool))


def both(own: dict[str, Any], partner: dict[str, Any], seed: int, **options: Any) -> list[dict[str, Any]]:
    """What mmdet's step and ours make of copies of a sample and its partner, with the draws of one seed."""
    made = []
    for kind in (MixUp, ByteMixUp):
        np.random.seed(seed)
        made.append(kind(**options)(copy.deepcopy({**own, 'mix_results': [partner]})))
        made[-1]['next draw'] = np.random.random()
    return made


@pytest.mark.parametrize('size', [(96, 128), (128, 96), (64, 64), (160, 160)])
@pytest.mark.parametrize('clip', [True, False])
def test_mixes_as_mmdet_does_within_a_level(size, clip):
    options = dict(img_scale=(128, 96), ratio_range=(0.5, 1.6), pad_val=128.0, bbox_clip_border=clip)
    worst = []
    for seed in range(12):
        theirs, ours = both(sample(size, 4, seed), sample((90 + 7 * seed, 140), 3, seed + 100), seed, **options)
        assert ours['img'].dtype == np.uint8 and ours['img'].shape == theirs['img'].shape
        assert ours['img_shape'] == theirs['img_shape'] and ours['next draw'] == theirs['next draw']
        worst.append(np.abs(ours['img'].astype(int) - theirs['img']).max())
        torch.testing.assert_close(ours['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor, rtol=0, atol=0)
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            assert ours[key].tolist() == theirs[key].tolist()
    assert max(worst) == 1


def test_pictures_that_are_mirrored_or_swapped_views():
    own, partner, mix = sample((96, 128), 2, 0), sample((90, 140), 2, 1), partial(both, seed=5, img_scale=(128, 96))
    for view in (lambda image: image[:, ::-1], lambda image: image[::-1, ::-1], lambda image: image[..., [2, 0, 1]]):
        views = [dict(each, img=view(each['img'])) for each in (own, partner)]
        copies = [dict(each, img=np.ascontiguousarray(each['img'])) for each in views]
        (_, seen), (_, whole) = (mix(*each) for each in (views, copies))
        assert np.array_equal(seen['img'], whole['img'])


def test_a_partner_without_boxes_changes_nothing():
    own = sample((64, 64), 2, 0)
    step = ByteMixUp(img_scale=(64, 64))
    assert step({**own, 'mix_results': [sample((64, 64), 0, 1)]})['img'] is own['img']


@pytest.mark.parametrize('kind', [np.float32, np.float64])
def test_float_pictures_go_the_way_of_mmdet(kind):
    own, partner = sample((64, 64), 2, 0), sample((64, 64), 2, 1)
    own['img'] = own['img'].astype(kind)
    theirs, ours = both(own, partner, 3, img_scale=(64, 64))
    assert np.array_equal(ours['img'], theirs['img'])
    before = partner['gt_bboxes'].tensor.clone()
    ByteMixUp(img_scale=(64, 64))({**own, 'mix_results': [partner]})
    assert torch.equal(partner['gt_bboxes'].tensor, before)  # a second mix may see it again
