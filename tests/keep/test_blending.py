"""Shares of a blend, and blends of tensors by hand."""
import math

import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.keep.blending import blend_states, check_alphas


@pytest.mark.parametrize(('alphas', 'line'), [
    ((), '--alphas is empty; give shares of the fine-tuned weights, such as 0 0.5 1'),
    ((0.5, 0.25, 0.5), '--alphas names 0.5 twice; give each share once'),
    ((0.5, 1.25), '--alphas must lie within 0 and 1, got 1.25: 0 is the pretrained, 1 the fine-tuned file'),
    ((-0.1, ), '--alphas must lie within 0 and 1, got -0.1: 0 is the pretrained, 1 the fine-tuned file'),
    ((math.nan, ), '--alphas must lie within 0 and 1, got nan: 0 is the pretrained, 1 the fine-tuned file')])
def test_shares_that_make_no_sense(alphas, line):
    with pytest.raises(UserError) as caught:
        check_alphas(alphas)
    assert str(caught.value) == line


def test_shares_rise():
    found = check_alphas([1, 0.5, 0])
    assert found == (0.0, 0.5, 1.0) and all(isinstance(each, float) for each in found)


def test_a_blend_by_hand():
    """What is no floating tensor is the fine-tuned one; what is equal stays so; each end is that state itself."""
    old = dict(w=torch.tensor([1.0, 0.1]), n=torch.tensor(3))
    new = dict(w=torch.tensor([3.0, 0.1], dtype=torch.float16).float(), n=torch.tensor(9))
    new['w'][1] = old['w'][1]
    blend = blend_states(old, new, 0.25)
    assert blend['w'].tolist() == [1.5, old['w'][1].item()] and blend['w'].dtype == torch.float32
    assert blend['n'] is new['n'] and list(blend) == ['w', 'n']
    for alpha, state in ((0, old), (1.0, new)):
        ends = blend_states(old, new, alpha)
        assert ends is not state and all(ends[key] is state[key] for key in state)
