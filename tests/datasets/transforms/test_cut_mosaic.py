"""Mosaic that makes what is seen: the draws, pixels and boxes of mmdet's Mosaic and its cut."""
from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import Mosaic, RandomAffine

from mgdet_plugin.datasets import CutMosaic
from tests.datasets.transforms.test_byte_mixup import sample


def both(samples: list[dict[str, Any]], seed: int, scale: tuple[int, int], **options: Any) -> list[dict[str, Any]]:
    """What mmdet's two steps and ours make of copies of samples, with the draws of one seed."""
    clip = options.get('bbox_clip_border', True)
    cut = RandomAffine(0.0, 0.0, (1.0, 1.0), 0.0, (-scale[0] // 2, -scale[1] // 2), (128, 128, 128), clip)
    made = []
    for steps in ([Mosaic(scale, pad_val=128.0, **options), cut], [CutMosaic(scale, pad_val=128.0, **options)]):
        np.random.seed(seed)
        results = copy.deepcopy({**samples[0], 'mix_results': samples[1:]})
        for step in steps:
            results = step(results)
        made.append({**results, 'next draw': np.random.random()})
    return made


@pytest.mark.parametrize('scale', [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize('options', [
    dict(center_ratio_range=(0.2, 0.8)), dict(center_ratio_range=(0.5, 1.5)), dict(center_ratio_range=(1.2, 1.9)),
    dict(center_ratio_range=(0.2, 0.8), bbox_clip_border=False)])
def test_it_is_mosaic_and_its_cut(scale, options):
    left = 0
    for seed in range(12):
        sizes = [(40 + 9 * seed, 70), (60, 130 - 5 * seed), (200, 150), scale[::-1]]
        samples = [sample(size, (seed + place) % 4, 10 * seed + place) for place, size in enumerate(sizes)]
        theirs, ours = both(samples, seed, scale, **options)
        assert np.array_equal(ours['img'], theirs['img']) and ours['img'].dtype == np.uint8
        assert ours['img_shape'] == theirs['img_shape'] and ours['next draw'] == theirs['next draw']
        assert torch.equal(ours['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor)
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            assert ours[key].tolist() == theirs[key].tolist()
        left += len(ours['gt_bboxes'])
    assert left > 1


def test_grey_and_float_pictures():
    samples = [sample((40, 50), 2, seed) for seed in range(4)]
    for change in (lambda image: image[..., 0], lambda image: image.astype(np.float32)):
        theirs, ours = both([dict(each, img=change(each['img'])) for each in samples], 0, (64, 64),
                            center_ratio_range=(0.2, 0.8))
        assert np.array_equal(ours['img'], theirs['img']) and ours['img'].dtype == theirs['img'].dtype


def test_the_others_stay_as_they_are():
    others = [sample((40, 50), 2, seed) for seed in range(3)]
    before = copy.deepcopy(others)
    CutMosaic((64, 64))(dict(sample((40, 50), 1, 9), mix_results=others))
    for one, other in zip(others, before):
        assert torch.equal(one['gt_bboxes'].tensor, other['gt_bboxes'].tensor) and one['img_shape'] == (40, 50)
        assert np.array_equal(one['img'], other['img'])


def test_its_own_probability():
    results = dict(sample((40, 50), 1, 0), mix_results=[])
    assert CutMosaic((64, 64), prob=0.0)(results)['img'].shape == (40, 50, 3)
