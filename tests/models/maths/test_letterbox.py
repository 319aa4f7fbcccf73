"""Geometry of the letterbox against the reference, and boxes back."""
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.letterbox import LetterboxScale, letterbox_geometry, placement, unletterbox_boxes

GOLDEN = np.load(Path(__file__).parents[2] / 'data' / 'letterbox.npz')


@pytest.mark.parametrize(('name', 'side'), [('wide', 64), ('tall', 416), ('large', 320)])
def test_inner_rectangle_equals_reference(name: str, side: int) -> None:
    shape = GOLDEN['large_shape'] if name == 'large' else GOLDEN[name].shape
    assert letterbox_geometry((shape[1], shape[0]), (side, side)) == tuple(GOLDEN[f'{name}_inner'])


def test_floored_product_can_be_a_pixel_short() -> None:
    # 49 * (64 / 49) is 63.99999999999999 in double precision
    assert letterbox_geometry((49, 49), (64, 64)) == (0, 0, 63, 63)


def test_extreme_aspect_keeps_one_pixel() -> None:
    assert letterbox_geometry((2000, 1), (320, 320)) == (0, 159, 320, 1)


def test_unletterbox_typed_in() -> None:
    boxes = torch.tensor([[10., 32., 42., 64.]])
    back = unletterbox_boxes(boxes, scale_factor=(2.0, 4.0), pad_param=(32, 0, 10, 0))
    torch.testing.assert_close(back, torch.tensor([[0., 0., 16., 8.]]))


SHAPES = dict(img_shape=(64, 64), ori_shape=(3, 64))
MARK = LetterboxScale((1.0, 1.0), (30, 31, 5, 6))
TURNED = {'horizontal': (30, 31, 6, 5), 'vertical': (31, 30, 5, 6), 'diagonal': (31, 30, 6, 5), None: MARK.pad_param}


@pytest.mark.parametrize('before', TURNED)
@pytest.mark.parametrize('now', TURNED)
def test_paddings_turn_with_a_picture_that_is_flipped_after_the_letterbox(before: str | None, now: str | None) -> None:
    scale = LetterboxScale(MARK, MARK.pad_param, flip_direction=before)
    meta = dict(SHAPES, scale_factor=scale, flip=now is not None, flip_direction=now)
    if before in (None, now):
        assert placement(meta) == ((1.0, 1.0), TURNED[None if before == now else now])
    assert placement(dict(SHAPES, scale_factor=scale)) == ((1.0, 1.0), MARK.pad_param)  # nobody says: as it was


def test_where_the_picture_lies_without_a_mark() -> None:
    plain = dict(scale_factor=(0.5, 0.5), ori_shape=(480, 640))
    assert placement(dict(plain, img_shape=(320, 320), pad_param=np.float32([40, 40, 0, 0])))[1] == (40, 40, 0, 0)
    # mmdet's Pad(size_divisor=32) adds at the bottom and right
    for shape in ((240, 320), (256, 320), (271, 351), (240, 320, 3)):
        assert placement(dict(plain, img_shape=shape)) == ((0.5, 0.5), (0, 0, 0, 0))


@pytest.mark.parametrize(('meta', 'message'), [
    (dict(img_shape=(320, 320), ori_shape=(480, 640), scale_factor=(0.5, 0.5), img_path='a.jpg'),
     r"metas of a.jpg do not say where in the input of 320x320 its 320x240 picture lies; add 'pad_param' to meta_keys"),
    (dict(img_shape=(64, 64), ori_shape=(64, 64)), r"lack scale_factor.*add 'scale_factor' to meta_keys of PackDet"),
    (dict(img_shape=(64, 64), scale_factor=MARK), r"a sample lack ori_shape.*add 'ori_shape'")])
def test_metas_out_of_which_no_boxes_can_be_told(meta: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        placement(meta)
    assert '\n' not in str(caught.value)
