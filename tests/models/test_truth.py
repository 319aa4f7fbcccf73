"""True boxes in the input and in the original picture, there and back, whatever happened to them before."""
import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes, bbox_flip, get_box_tensor

import mgdet_plugin.datasets  # noqa: F401  registers Letterbox
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.truth import truth_in_input, truth_in_original

BOXES = [[3.0, 5, 40, 17], [100, 2, 149, 60]]
FIT = dict(type='Letterbox', scale=(128, 96))


def packed(steps, before=True):
    """A sample of 150 x 63 pixels; the second box is ignored."""
    results = dict(img=np.zeros((63, 150, 3), np.uint8), img_shape=(63, 150), ori_shape=(63, 150))
    boxes = dict(gt_bboxes=HorizontalBoxes(BOXES), gt_bboxes_labels=np.array([0, 1]),
                 gt_ignore_flags=np.array([False, True]))
    results |= boxes if before else {}
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return TRANSFORMS.build(dict(type='PackDetInputs'))(results | ({} if before else boxes))['data_samples']


def boxes_of(sample):
    return torch.cat([get_box_tensor(each.bboxes) for each in (sample.gt_instances, sample.ignored_instances)])


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_a_mirrored_view_is_turned_back_exactly(direction):
    """Where the paddings differ by a pixel, too; the flip before the letterbox turns nothing."""
    flip = dict(type='RandomFlip', prob=1.0, direction=direction)
    for steps in ([FIT, flip], [flip, FIT]):
        view = truth_in_original(packed(steps))
        top, bottom, *_ = view.pad_param
        assert abs(top - bottom) == 1
        back = bbox_flip(boxes_of(view), view.ori_shape, direction)
        torch.testing.assert_close(back, torch.tensor(BOXES).float(), atol=1e-4, rtol=0)


def test_there_and_back():
    inside, original = packed([FIT]), packed([FIT], before=False)
    assert truth_in_input(inside) is inside  # training costs nothing
    torch.testing.assert_close(boxes_of(truth_in_input(original)), boxes_of(inside))
    for sample in (inside, original):
        before = boxes_of(sample).clone()
        out = truth_in_original(sample)
        torch.testing.assert_close(boxes_of(out), torch.tensor(BOXES).float(), atol=1e-4, rtol=0)
        assert type(out.scale_factor) is tuple and truth_in_original(out) is out
        assert torch.equal(boxes_of(sample), before)


def test_without_a_letterbox_the_caller_knows():
    resize = dict(type='Resize', scale=(75, 63), keep_ratio=True)
    sample = packed([resize])
    assert truth_in_original(sample) is sample and truth_in_input(sample) is sample
    torch.testing.assert_close(boxes_of(truth_in_original(sample, scaled=True)), torch.tensor(BOXES).float())
    later = packed([resize], before=False)
    torch.testing.assert_close(boxes_of(truth_in_input(later, scaled=False)), boxes_of(sample))


def test_boxes_that_cannot_be_placed():
    """Loaded after the letterbox, before or after the flip: nothing tells."""
    with pytest.raises(UserError, match='put LoadAnnotations before the Letterbox'):
        truth_in_input(packed([FIT, dict(type='RandomFlip', prob=1.0)], before=False))
