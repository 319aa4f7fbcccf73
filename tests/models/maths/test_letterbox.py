"""Geometry of the letterbox against the reference, and boxes back."""
from pathlib import Path

import numpy as np
import pytest
import torch

from mgdet_plugin.models.maths.letterbox import letterbox_geometry, unletterbox_boxes

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
