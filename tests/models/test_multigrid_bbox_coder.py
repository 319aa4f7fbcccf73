"""Decoding against the reference and against numbers worked out by hand; encoding as its inverse."""
import math

import numpy as np
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models import MultiGridBBoxCoder
from mgdet_plugin.models.multigrid_bbox_coder import activate_xy, invert_xy
from tests.conftest import ANCHORS, STRIDES


def make_coder(**fields):
    return MultiGridBBoxCoder(ANCHORS, STRIDES, **fields)


def test_golden_decode(make_head, golden, golden_maps):
    boxes, scores, class_probs = make_head().decode(golden_maps)
    decoded = torch.from_numpy(golden['decoded'])  # every seventh cell; centre and size as fractions of the input
    centre, size = decoded[..., :2] * 320, decoded[..., 2:4] * 320
    expected = torch.cat((centre - size / 2, centre + size / 2), -1)
    torch.testing.assert_close(boxes[:, ::7], expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores[:, ::7], decoded[..., 4], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(class_probs[:, ::7], decoded[..., 5:], rtol=1e-4, atol=1e-6)


def test_one_cell_by_hand_on_a_map_that_is_not_square():
    # Stride 16 (level 1), row 1, column 2 of a 2 x 4 map; anchor 1 (56 x 112) is the most likely.
    maps = [torch.zeros(1, 10, 1, 2), torch.zeros(1, 10, 2, 4), torch.zeros(1, 10, 4, 8)]
    maps[1][0, :, 1, 2] = torch.tensor([2.0, -1.0, math.log(0.5), math.log(0.25), 1.0, 0.0, 3.0, 0.0, 0.5, -0.5])
    boxes, scores, class_probs = make_coder().decode(maps)
    index = 2 + 1 * 4 + 2  # after the two cells of level 0
    x = (math.tanh(0.3) + 1 / (1 + math.exp(-0.3)) + 2) * 16
    y = (math.tanh(-0.15) + 1 / (1 + math.exp(0.15)) + 1) * 16
    torch.testing.assert_close(boxes[0, index], torch.tensor([x - 14, y - 14, x + 14, y + 14]))
    anchor = math.exp(3) / (math.exp(3) + 2)
    first = math.exp(0.5) / (math.exp(0.5) + math.exp(-0.5))
    torch.testing.assert_close(class_probs[0, index], torch.tensor([first, 1 - first]))
    assert scores[0, index].item() == pytest.approx(1 / (1 + math.exp(-1)) * anchor * first, rel=1e-5)
    assert boxes.shape == (1, 2 + 8 + 32, 4)


def test_sigmoid_probabilities_and_choice_of_factors():
    maps = [torch.zeros(1, 10, 1, 1) for _ in range(3)]
    maps[0][0, :, 0, 0] = torch.tensor([0.0, 0, 0, 0, 1.0, 0.5, 2.0, -1.0, 0.3, -0.7])
    sigmoid = torch.tensor([1.0, 2.0, 0.3]).sigmoid()
    coder = make_coder(use_softmax=False)
    assert coder.decode(maps)[1][0, 0].item() == pytest.approx(sigmoid.prod().item())
    torch.testing.assert_close(coder.decode(maps)[2][0, 0], torch.tensor([0.3, -0.7]).sigmoid())
    for factors, expected in ((('objectness', ), sigmoid[0]), (('class', 'objectness'), sigmoid[0] * sigmoid[2])):
        coder = make_coder(use_softmax=False, score_factors=factors)
        assert coder.decode(maps)[1][0, 0].item() == pytest.approx(expected.item())


def test_xy_reaches_one_cell_to_each_side():
    ends = activate_xy(torch.tensor([-1e4, 0.0, 1e4]), 0.15)
    torch.testing.assert_close(ends, torch.tensor([-1.0, 0.5, 2.0]))


def test_encode_inverts_decode():
    generator = torch.Generator().manual_seed(0)
    raw = torch.cat((torch.rand(200, 2, generator=generator) * 20 - 10, torch.randn(200, 2, generator=generator)), 1)
    cells = torch.stack((torch.arange(200) % 13, torch.arange(200) % 7, torch.full((200, ), 16)), 1)
    anchors = torch.tensor(ANCHORS[1], dtype=torch.float32)[torch.arange(200) % 3]
    coder = make_coder()
    boxes = coder.decode_boxes(raw, anchors, cells[:, 0], cells[:, 1], cells[:, 2])
    again = coder.decode_boxes(coder.encode(cells, boxes, anchors), anchors, cells[:, 0], cells[:, 1], cells[:, 2])
    torch.testing.assert_close(again, boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(activate_xy(invert_xy(torch.linspace(-0.95, 1.95, 50), 0.15), 0.15),
                               torch.linspace(-0.95, 1.95, 50), atol=1e-5, rtol=0)


@pytest.mark.parametrize('use_softmax', [True, False])
def test_expected_anchor_lies_between_anchors(use_softmax):
    coder = make_coder(anchor_use='expected', use_softmax=use_softmax)
    level = torch.tensor([1, 2, 0])
    logits = torch.tensor([[0.0, 0, 0], [-40, 40, -40], [2, 1, -1]], requires_grad=True)
    sizes = coder.expected_sizes(logits, level)
    anchors = torch.tensor(ANCHORS, dtype=torch.float32)
    torch.testing.assert_close(sizes[0], anchors[1].prod(0).pow(1 / 3))  # geometric mean
    torch.testing.assert_close(sizes[1], anchors[2, 1])
    chances = np.exp([2, 1, -1]) if use_softmax else 1 / (1 + np.exp([-2.0, -1, 1]))
    by_hand = np.exp((np.log(ANCHORS[0]) * (chances / chances.sum())[:, None]).sum(0))
    np.testing.assert_allclose(sizes[2].detach(), by_hand, rtol=1e-5)
    sizes.sum().backward()
    assert logits.grad[0].abs().min() > 0


def test_expected_anchor_in_decoded_boxes():
    maps = [torch.zeros(1, 10, 1, 1) for _ in range(3)]
    maps[0][0, 5:8, 0, 0] = torch.tensor([1.0, 1.0, -50.0])
    (a, b), (c, d) = ANCHORS[0][:2]
    for use, size in (('likely', (a, b)), ('expected', (math.sqrt(a * c), math.sqrt(b * d)))):
        box = make_coder(anchor_use=use).decode(maps)[0][0, 0]
        torch.testing.assert_close(box[2:] - box[:2], torch.tensor(size, dtype=torch.float32))


def test_wild_logits_stay_finite():
    maps = [torch.full((1, 10, 2, 2), value) for value in (1e4, -1e4, 3e38)]
    for use in ('likely', 'expected'):
        for field in make_coder(anchor_use=use).decode(maps):
            assert torch.isfinite(field).all()


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(xy_scale=0), 'xy_scale'), (dict(score_factors=('iou', )), 'score_factors'), (dict(score_factors=()), 'got'),
    (dict(anchor_use='mean'), "anchor_use.*'mean'")])
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        make_coder(**fields)


def test_bad_anchors():
    with pytest.raises(UserError, match='one entry a level, got 3 and 2'):
        MultiGridBBoxCoder(ANCHORS, (32, 16))
    with pytest.raises(UserError, match='positive'):
        MultiGridBBoxCoder([[(0, 5)]], (32, ))
    with pytest.raises(UserError, match=r'\[1, 2\]'):
        MultiGridBBoxCoder([[(1, 5)], [(1, 2), (3, 4)]], (32, 16))
