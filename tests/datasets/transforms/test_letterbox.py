"""Letterbox against the reference's pixels, and boxes there and back."""
import copy
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Letterbox
from mgdet_plugin.models.maths.letterbox import letterbox_boxes, unletterbox_boxes

GOLDEN = np.load(Path(__file__).parents[2] / 'data' / 'letterbox.npz')


def test_equals_reference_when_shrinking() -> None:
    results = Letterbox(scale=(64, 64))({'img': GOLDEN['wide']})
    np.testing.assert_array_equal(results['img'], GOLDEN['wide_letterboxed'])


def test_equals_reference_when_enlarging() -> None:
    image = Letterbox(scale=(416, 416))({'img': GOLDEN['tall']})['img']
    assert image.shape == (416, 416, 3)
    assert hashlib.sha256(image.tobytes()).digest() == GOLDEN['tall_sha256'].tobytes()


def test_sets_every_key() -> None:
    results = Letterbox(scale=(64, 96))({'img': np.zeros((20, 40, 3), np.uint8)})
    assert results['img'].dtype == np.uint8
    assert results['img_shape'] == results['img'].shape[:2] == (96, 64)
    assert results['scale'] == (64, 96)
    assert results['scale_factor'] == (1.6, 1.6)
    assert results['keep_ratio'] is True
    assert results['pad_param'].dtype == np.float32
    np.testing.assert_array_equal(results['pad_param'], [32, 32, 0, 0])
    assert (results['img'][:32] == 128).all() and (results['img'][32:64] == 0).all()


def test_odd_border_is_larger_at_the_end() -> None:
    results = Letterbox(scale=(64, 64))({'img': np.zeros((3, 64, 3), np.uint8)})
    np.testing.assert_array_equal(results['pad_param'], [30, 31, 0, 0])


def test_scale_factor_is_the_true_ratio_of_each_axis() -> None:
    results = Letterbox(scale=(64, 64))({'img': np.zeros((97, 151, 3), np.uint8)})
    assert results['scale_factor'] == (64 / 151, 41 / 97)


def test_boxes_are_scaled_then_shifted_and_never_clipped() -> None:
    boxes = HorizontalBoxes([[0., 0., 40., 20.], [-5., 10., 50., 10.]])
    results = Letterbox(scale=(64, 96))({'img': np.zeros((20, 40, 3), np.uint8), 'gt_bboxes': boxes})
    expected = torch.tensor([[0., 32., 64., 64.], [-8., 48., 80., 48.]])
    torch.testing.assert_close(results['gt_bboxes'].tensor, expected)


def test_no_boxes() -> None:
    results = Letterbox(scale=(64, 64))({'img': np.zeros((9, 9, 3), np.uint8), 'gt_bboxes': HorizontalBoxes([])})
    assert results['gt_bboxes'].tensor.shape == (0, 4)


def test_round_trip_of_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(2, 50, 4, generator=generator, dtype=torch.float64) * 500
    for size in ((151, 97), (250, 333), (49, 49), (1333, 57)):
        results = Letterbox(scale=(416, 320))({'img': np.zeros((size[1], size[0], 3), np.uint8)})
        inside = letterbox_boxes(boxes, results['scale_factor'], results['pad_param'])
        assert not torch.allclose(inside, boxes)
        back = unletterbox_boxes(inside, results['scale_factor'], results['pad_param'])
        torch.testing.assert_close(back, boxes, rtol=0, atol=1e-9)


def test_float_image_is_rounded_and_clipped() -> None:
    image = np.full((32, 32, 3), 100.6, np.float32)
    image[0] = -3.0
    image[1] = 300.0
    out = Letterbox(scale=(32, 32))({'img': image})['img']
    assert out.dtype == np.uint8
    assert (out[0, 0, 0], out[1, 0, 0], out[2, 0, 0]) == (0, 255, 101)


@pytest.mark.parametrize(('scale', 'nearest'), [((600, 608), '576 or 608'), ((608, 20), '32'), ((-32, 32), '32')])
def test_refuses_sides_that_are_not_multiples_of_32(scale: tuple[int, int], nearest: str) -> None:
    with pytest.raises(UserError, match=f'multiples of 32, got -?[0-9]+ in .*nearest allowed: {nearest}$'):
        Letterbox(scale=scale)


@pytest.mark.parametrize('scale', [608, '608', (608,), (608.0, 608.0), (True, 32)])
def test_refuses_scales_that_are_not_two_whole_numbers(scale: object) -> None:
    with pytest.raises(UserError, match='whole pixels'):
        Letterbox(scale=scale)  # type: ignore[arg-type]


def test_error_survives_the_registry_as_a_user_error() -> None:
    with pytest.raises(UserError, match='multiples of 32, got 600'):
        TRANSFORMS.build(dict(type='Letterbox', scale=(600, 600)))


@pytest.mark.parametrize('pad_val', [-1, 256, 0.5])
def test_refuses_grey_levels_outside_of_a_byte(pad_val: object) -> None:
    with pytest.raises(UserError, match='pad_val'):
        Letterbox(scale=(32, 32), pad_val=pad_val)  # type: ignore[arg-type]


@pytest.mark.parametrize('key', ['gt_masks', 'gt_seg_map'])
def test_refuses_masks(key: str) -> None:
    with pytest.raises(ValueError, match=f'cannot map {key}'):
        Letterbox(scale=(32, 32))({'img': np.zeros((8, 8, 3), np.uint8), key: np.zeros((8, 8))})


@pytest.mark.parametrize('shape', [(20, 40), (20, 40, 1)])
@pytest.mark.parametrize('kind', [np.uint8, np.float32])
def test_grey_images_get_three_equal_channels(shape: tuple[int, ...], kind: type) -> None:
    grey = np.random.RandomState(0).randint(0, 255, shape).astype(kind)
    expected = Letterbox(scale=(64, 32))({'img': np.repeat(grey.reshape(20, 40, 1), 3, axis=2)})
    np.testing.assert_array_equal(Letterbox(scale=(64, 32))({'img': grey})['img'], expected['img'])


@pytest.mark.parametrize('flip', [None, 'horizontal', 'diagonal'])
def test_the_scale_knows_all_that_undoing_takes(flip: str | None) -> None:
    results: dict = {'img': np.zeros((3, 64, 3), np.uint8), 'flip': flip is not None, 'flip_direction': flip}
    without = Letterbox(scale=(64, 64))(dict(results))['scale_factor']
    scale = Letterbox(scale=(64, 64))(dict(results, gt_bboxes=HorizontalBoxes([[0, 0, 4, 2]])))['scale_factor']
    for each in (scale, copy.deepcopy(scale), pickle.loads(pickle.dumps(scale))):
        assert (each, each.pad_param, each.moved_boxes, each.flip_direction) == ((1, 1), (30, 31, 0, 0), True, flip)
    assert not without.moved_boxes


@pytest.mark.parametrize('image', [np.zeros((8, 8, 4), np.uint8), np.zeros((8, ), np.uint8),
                                   np.zeros((0, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint16),
                                   np.zeros((8, 8), np.uint16)])
def test_refuses_images_it_cannot_resize(image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"needs an? .*color_type='color'"):
        Letterbox(scale=(32, 32))({'img': image})


@pytest.mark.parametrize('size', [(48, 64), (64, 48), (200, 131), (333, 640), (17, 9)])
def test_a_letterbox_that_is_not_exact_is_within_two_levels(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    exact, fast = (Letterbox(scale=(96, 96), exact=each)(dict(img=image)) for each in (True, False))
    apart = np.abs(exact['img'].astype(int) - fast['img'])
    assert 0 < apart.max() <= 2 and (apart > 0).mean() < 0.02
    assert fast['img'].dtype == np.uint8 and fast['scale_factor'] == exact['scale_factor']


@pytest.mark.parametrize('exact', [True, False])
def test_a_picture_of_the_right_size_stays_as_it_is(exact: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for given in (image, image[:, ::-1], image[..., [2, 0, 1]], image[..., ::-1].astype(np.float32)):
        made = Letterbox(scale=(96, 64), exact=exact)(dict(img=given))['img']
        assert np.array_equal(made, given) and not np.shares_memory(made, given)


def test_refuses_an_exactness_that_is_no_answer() -> None:
    with pytest.raises(UserError, match="exact must be True or False, got 'no'"):
        Letterbox(scale=(32, 32), exact='no')  # type: ignore[arg-type]
