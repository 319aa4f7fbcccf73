"""Mosaic and mixup: boxes lie where the pixels lie, partners are others, what is reported was done."""
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import SampleIndex, StagedDataset, StagedMix
from mgdet_plugin.datasets.staged.staged_mix import clip_to_image
from tests.support.drawn import GREY, CountLoads, draw_set, load_steps, mixup, mosaic

TOLERANCE = 1.5  # pixels


def samples(cfg: dict[str, Any], count: int = 60, **probs: float) -> list[dict[str, Any]]:
    """Samples of a set under a plan of one stage."""
    dataset = StagedDataset(cfg, (probs,) if probs else ())
    return [dataset[SampleIndex(i % len(dataset), epoch=0, stage=0, seed=i)] for i in range(count)]


def drawn(image: np.ndarray, threshold: int = 15) -> np.ndarray:
    """(H, W) whether a pixel is no ground."""
    return (np.abs(image.astype(int) - GREY) > threshold).any(-1)


def region(image: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """xyxy of the region of one colour around a point."""
    alike = np.abs(image.astype(int) - image[int(y), int(x)]).max(-1) < 3
    labels = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)[1]
    rows, columns = np.nonzero(labels == labels[int(y), int(x)])
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def area(boxes: torch.Tensor, shape: tuple[int, int], margin: float) -> np.ndarray:
    """(H, W) whether a pixel's centre lies in a box grown by ``margin``."""
    inside = np.zeros(shape, bool)
    y, x = (part + 0.5 for part in np.mgrid[:shape[0], :shape[1]])
    for x1, y1, x2, y2 in boxes.tolist():
        inside |= (x > x1 - margin) & (x < x2 + margin) & (y > y1 - margin) & (y < y2 + margin)
    return inside


@pytest.mark.parametrize('overhang', [0, 9])
@pytest.mark.parametrize('size', [(32, 32), (96, 48), (20, 40)])
@pytest.mark.parametrize('cut', [True, False])
def test_mosaic_boxes_are_the_coloured_regions(cut: bool, size: tuple[int, int], overhang: int, tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', 24, size, overhang=overhang)
    counts = []
    for results in samples(dict(cfg, pipeline=[*load_steps(), mosaic(64, cut)]), mosaic=1.0):
        image, boxes = results['img'], results['gt_bboxes'].tensor
        assert results['augmented'] == ('mosaic', ) and image.shape == (64, 64, 3) == (*results['img_shape'], 3)
        assert len(boxes) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags'])
        assert not (drawn(image, 44) & ~area(boxes, (64, 64), TOLERANCE)).any()  # none is lost; 44: no blurred edges
        colours = []
        for x1, y1, x2, y2 in boxes.tolist():
            if min(x2 - x1, y2 - y1) < 3:
                continue
            colours.append(tuple(image[int((y1 + y2) / 2), int((x1 + x2) / 2)]))
            np.testing.assert_allclose([x1, y1, x2, y2], region(image, (x1 + x2) / 2, (y1 + y2) / 2), atol=TOLERANCE)
        assert len(set(colours)) == len(colours)  # of four different images
        counts.append(len(boxes))
    assert max(counts) == 4 and np.mean(counts) > 2


@pytest.mark.parametrize('overhang', [0, 9])
@pytest.mark.parametrize('ratio_range', [(1.0, 1.0), (0.8, 1.25)])
def test_mixup_boxes_are_the_coloured_regions_of_both(ratio_range: tuple[float, float], overhang: int,
                                                      tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', 24, (64, 64), overhang=overhang)
    for results in samples(dict(cfg, pipeline=[*load_steps(), mixup(64, ratio_range)]), mixup=1.0):
        image, boxes = results['img'], results['gt_bboxes'].tensor
        assert results['augmented'] == ('mixup', ) and image.shape == (64, 64, 3) and image.dtype == np.uint8
        assert len(boxes) == len(results['gt_bboxes_labels']) == len(results['gt_ignore_flags']) == 2
        margin = 0 if ratio_range[0] == 1 else TOLERANCE
        assert not (drawn(image) & ~area(boxes, (64, 64), margin)).any()
        assert not (~drawn(image) & area(boxes, (64, 64), -margin)).any()


@pytest.mark.parametrize(('step', 'others'), [(mosaic(), 3), (mosaic(cut=False), 3), (mixup(), 1)])
@pytest.mark.parametrize('count', [2, 4, 12])
def test_partners_are_others_distinct_and_loaded_once(step: dict, others: int, count: int, tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', count, empty=range(count // 2, count - 1))
    seen = CountLoads()
    dataset = StagedDataset(dict(cfg, pipeline=[*load_steps(), seen, step]), ({step['name']: 1.0}, ))
    partners: Counter[int] = Counter()
    for i in range(40):
        seen.seen.clear()
        assert dataset[SampleIndex(i % count, epoch=0, stage=0, seed=i)]['augmented'] == (step['name'], )
        own, *rest = seen.seen
        assert own == i % count and own not in rest and len(set(rest)) == len(rest)
        assert len(rest) >= min(others, count - 1)
        if step['name'] == 'mosaic':
            assert len(rest) == min(others, count - 1)
        partners.update(rest)
    assert set(partners) == set(range(count))


def test_a_partner_taken_more_than_once_is_whole_each_time(tmp_path: Path) -> None:
    """With two images the other one is all three partners of a mosaic: the boxes of one must not move another's."""
    cfg = draw_set(tmp_path / 'set', 2, (64, 64))
    one, other = (samples(dict(cfg, pipeline=[*load_steps(), mosaic(64, cut)]), 20, mosaic=1.0)
                  for cut in (True, False))
    for ours, theirs in zip(one, other):
        assert torch.equal(ours['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor)
        assert np.array_equal(ours['img'], theirs['img'])


def test_mixup_without_boxes_to_mix_with_is_not_reported(tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', 4, empty=(1, 2, 3))
    plain, mixed = (samples(dict(cfg, pipeline=[*load_steps(), *steps]), 8, **probs)
                    for steps, probs in (([], {}), ([mixup()], dict(mixup=1.0))))
    for index, (before, after) in enumerate(zip(plain, mixed)):
        if index % 4:
            assert after['augmented'] == ('mixup', ) and len(after['gt_bboxes']) == 1
        else:  # the only image with a box finds no other
            assert after['augmented'] == () and np.array_equal(before['img'], after['img'])
            assert torch.equal(before['gt_bboxes'].tensor, after['gt_bboxes'].tensor)


def test_the_only_image_is_not_mixed_with_itself(tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', 1)
    for step in (mosaic(), mixup()):
        results, = samples(dict(cfg, pipeline=[*load_steps(), step]), 1, **{step['name']: 1.0})
        assert results['augmented'] == () and results['img'].shape == (32, 32, 3) and 'mix_source' not in results


def test_own_probability_without_a_plan(tmp_path: Path) -> None:
    cfg = draw_set(tmp_path / 'set', 8)
    done = Counter(results['augmented'] for results in samples(
        dict(cfg, pipeline=[*load_steps(), mosaic(prob=0.5), mixup()]), 400))
    assert set(done) == {(), ('mosaic', )} and abs(done['mosaic', ] / 400 - 0.5) < 0.1


def test_outside_of_a_staged_dataset() -> None:
    results = dict(img=np.zeros((32, 32, 3), np.uint8))
    assert TRANSFORMS.build(mosaic())(results) is results
    with pytest.raises(UserError, match=r"'mosaic' has prob=0.3 .*StagedDataset"):
        TRANSFORMS.build(mosaic(prob=0.3))(results)


def test_boxes_are_clipped_to_their_image_and_stay_aligned() -> None:
    results = dict(img=np.zeros((20, 40, 3), np.uint8), gt_bboxes_labels=np.arange(4),
                   gt_ignore_flags=np.array([True, False, False, True]),
                   gt_bboxes=HorizontalBoxes([[-5., 3., 10., 30.], [40., 2., 50., 9.], [1., 2., 3., 4.],
                                              [39., 0., 99., 9.]]))
    before = copy.deepcopy(results)
    clipped = clip_to_image(results)
    assert clipped['gt_bboxes'].tensor.tolist() == [[0, 3, 10, 20], [1, 2, 3, 4], [39, 0, 40, 9]]
    assert clipped['gt_bboxes_labels'].tolist() == [0, 2, 3]
    assert clipped['gt_ignore_flags'].tolist() == [True, False, True]
    assert torch.equal(results['gt_bboxes'].tensor, before['gt_bboxes'].tensor)
    assert len(results['gt_bboxes_labels']) == 4


@pytest.mark.parametrize(('fields', 'match'), [
    (dict(prob=1.5), '1.5'), (dict(prob=None), 'None'), (dict(name=''), "''"), (dict(transforms=[]), 'NoneType'),
    (dict(transforms=[dict(type='RandomFlip', prob=0.5)]), 'RandomFlip'),
    (dict(transforms=[dict(type='Mosaic', prob=0.5)]), 'prob=0.5'),
    (dict(transforms=[dict(type='CachedMosaic')]), 'use Mosaic')])
def test_refuses(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        StagedMix(**{**dict(name='mosaic', transforms=[dict(type='Mosaic')]), **fields})


@pytest.mark.parametrize('cut', [True, False])
def test_mixes_follow_the_letterbox(cut: bool, tmp_path: Path) -> None:
    """A user changes the input size in the Letterbox alone; mosaic, its cut and mixup must come along."""
    steps = [*load_steps(), mosaic(64, cut), dict(type='Letterbox', scale=(32, 96)), mixup(side=64)]
    dataset = StagedDataset(dict(draw_set(tmp_path, 6), pipeline=steps), [dict(mosaic=1.0, mixup=1.0)])
    results = dataset[0]
    assert results['augmented'] == ('mosaic', 'mixup')
    assert results['img'].shape[:2] == (96, 32)
    assert tuple(results['scale_factor']) == (1.0, 1.0)  # the mosaic had the Letterbox's size already
