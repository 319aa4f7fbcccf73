"""The focal losses of mmcv, against values worked by hand, numeric derivatives and mmdet's own formula.

They are called through ``mmcv.ops``. Compiled mmcv has them on CUDA only, so there the tests need a CUDA device.
"""
from __future__ import annotations

import math

import mgdet_plugin  # noqa: F401  mmcv.ops cannot be imported before it

# isort: split
import pytest
import torch
from mmcv.ops import sigmoid_focal_loss, softmax_focal_loss
from torch.autograd import gradcheck

from mgdet_plugin.compat import has_compiled_ops
from mgdet_plugin.compat.mmcv_focal_loss import softmax_focal_loss_backward

FOCAL_DEVICES = ['cuda'] if torch.cuda.is_available() else []
if not has_compiled_ops():
    FOCAL_DEVICES.append('cpu')
NO_FOCAL = 'compiled mmcv has its focal losses on CUDA only, and there is no CUDA device'
focal_device = pytest.mark.parametrize(
    'device', FOCAL_DEVICES or [pytest.param('cpu', marks=pytest.mark.skip(reason=NO_FOCAL))])


@focal_device
def test_sigmoid_focal_loss_worked(device):
    """At logit 0, p = 1/2: the target's loss is a/4 ln 2, another class's (1 - a)/4 ln 2. Class 2 is background."""
    logits, target = torch.zeros(2, 2, device=device), torch.tensor([0, 2], device=device)
    quarter = 0.25 * math.log(2)
    expected = torch.tensor([[0.25 * quarter, 0.75 * quarter], [0.75 * quarter, 0.75 * quarter]], device=device)
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'mean'), expected.sum() / 2)
    weighted = sigmoid_focal_loss(logits[:1], target[:1], 2.0, 0.25, torch.tensor([3., 5.], device=device), 'none')
    torch.testing.assert_close(weighted, 3 * expected[:1])  # by the class of the sample, not of the column


@focal_device
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_sigmoid_focal_loss_gradient(device, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 1], device=device)
    weight = torch.tensor([1., 2., 0.5, 1.], dtype=torch.float64, device=device)[:3]
    assert gradcheck(lambda value: sigmoid_focal_loss(value, target, gamma, 0.25, None, 'mean'), (logits, ))
    known = target < 3
    assert gradcheck(lambda value: sigmoid_focal_loss(value[known], target[known], gamma, 0.25, weight, 'sum'),
                     (logits, ))


@focal_device
def test_sigmoid_focal_loss_equals_mmdet_on_moderate_logits(device):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 4, generator=generator).to(device).requires_grad_()
    target = torch.randint(0, 5, (50, ), generator=generator).to(device)
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    expected = py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction='none')
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value.sum(), logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*slopes)


@focal_device
def test_sigmoid_focal_loss_is_finite_at_extreme_logits(device):
    logits = torch.tensor([[200., -200.], [-200., 200.]], device=device, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0], device=device), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    # right ones cost nothing, wrong ones the logarithm of the smallest float32, not of zero
    floor = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss.detach().cpu(), torch.tensor([[0., 0.], [0.25 * floor, 0.75 * floor]]))


@focal_device
def test_softmax_focal_loss_worked(device):
    """Two equal logits, p = 1/2: the loss is a (1/2)^2 ln 2."""
    logits, target = torch.zeros(2, 2, device=device), torch.tensor([0, 1], device=device)
    each = 0.25 * 0.25 * math.log(2)
    loss = softmax_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([each, each], device=device))
    weight = torch.tensor([3., 5.], device=device)
    weighted = softmax_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    torch.testing.assert_close(weighted, torch.tensor([3 * each, 5 * each], device=device))


@focal_device
def test_softmax_focal_loss_ignores_negative_targets(device):
    logits = torch.tensor([[1., 2.], [3., 1.]], device=device, requires_grad=True)
    loss = softmax_focal_loss(logits, torch.tensor([-1, 0], device=device), 2.0, 0.25, None, 'none')
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    assert logits.grad[0].tolist() == [0, 0] and logits.grad[1].abs().sum() > 0


@focal_device
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_softmax_focal_loss_gradient(device, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64).to(device).requires_grad_()
    target = torch.tensor([0, 1, 2, 1], device=device)
    weight = torch.tensor([1., 2., 0.5], dtype=torch.float64, device=device)
    assert gradcheck(lambda value: softmax_focal_loss(value, target, gamma, 0.25, None, 'mean'), (logits, ))
    assert gradcheck(lambda value: softmax_focal_loss(value, target, gamma, 0.25, weight, 'sum'), (logits, ))


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_stand_in_softmax_slope_is_finite_at_certainty(gamma):
    prob, target = torch.tensor([[1., 0.]]), torch.tensor([0])
    slope, grad = torch.full((1, ), math.nan), torch.full((1, 2), math.nan)
    softmax_focal_loss_backward(prob, target, prob.new_empty(0), slope, grad, gamma=gamma, alpha=0.25)
    assert slope.tolist() == [-0.25 if gamma == 0 else 0.0]
    assert grad.tolist() == [[0.0, 0.0]]


@pytest.mark.skipif(has_compiled_ops(), reason='the compiled operation asserts in C++ instead')
def test_a_target_above_background_is_refused():
    with pytest.raises(ValueError, match='at most the number of classes, 2, got 3'):
        sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([3]), 2.0, 0.25, None, 'none')
