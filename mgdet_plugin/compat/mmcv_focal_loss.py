"""The focal losses of mmcv's compiled extension, in torch: forward and derivative, as its CUDA kernels compute them.

The compiled losses exist on CUDA alone (mmdet computes the loss in Python on the CPU); these run on any device.

Shapes: N samples, C classes.
"""
from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # the kernels' floor under a logarithm, for every dtype


def widen(tensor: Tensor) -> Tensor:
    """Return float64 as it is and everything else as float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _class_factor(weight: Tensor, target: Tensor) -> Tensor | float:
    """Return the weight of each sample's class (N,), or 1 without class weights (an empty tensor).

    Raises:
        IndexError: If a target has no weight, as background (= C) has none.
    """
    return widen(weight).index_select(0, target) if weight.numel() else 1.0


def _positives(logits: Tensor, target: Tensor) -> Tensor:
    """Return where a class is its sample's target, (N, C) bool. Background is class C.

    Raises:
        ValueError: If a target is above C.
    """
    classes = logits.size(1)
    if target.numel() and int(target.max()) > classes:
        raise ValueError(f'target must be at most the number of classes, {classes}, got {int(target.max())}')
    return target[:, None] == torch.arange(classes, device=target.device)


@torch.no_grad()
def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the focal loss of every sample and class into ``output`` (Lin et al., arXiv 1708.02002, equation 5).

    Args:
        input: Logits (N, C).
        target: Class of each sample (N,), C for background.
        weight: Class weights (C,), or empty.
        output: Receives the loss (N, C).
        gamma: Exponent on the distance from the right answer.
        alpha: Weight of the positive class, ``1 - alpha`` that of the others.
    """
    prob = widen(input).sigmoid()
    positive = -alpha * (1 - prob)**gamma * prob.clamp(min=TINY).log()
    negative = -(1 - alpha) * prob**gamma * (1 - prob).clamp(min=TINY).log()
    loss = torch.where(_positives(input, target), positive, negative)
    output.copy_((loss.T * _class_factor(weight, target)).T)


@torch.no_grad()
def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Write the derivative of :func:`sigmoid_focal_loss_forward` by the logits into ``grad_input`` (N, C)."""
    prob = widen(input).sigmoid()
    log_prob, log_rest = prob.clamp(min=TINY).log(), (1 - prob).clamp(min=TINY).log()
    positive = -alpha * (1 - prob)**gamma * (1 - prob - gamma * prob * log_prob)
    negative = -(1 - alpha) * prob**gamma * (gamma * (1 - prob) * log_rest - prob)
    grad = torch.where(_positives(input, target), positive, negative)
    grad_input.copy_((grad.T * _class_factor(weight, target)).T)


@torch.no_grad()
def softmax_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Write the softmax focal loss of every sample into ``output``.

    Args:
        input: Softmax probabilities (N, C).
        target: Class of each sample (N,); a negative one has no loss.
        weight: Class weights (C,), or empty.
        output: Receives the loss (N,).
        gamma: Exponent on the distance from the right answer.
        alpha: Factor on the loss.
    """
    prob = _target_prob(input, target)
    loss = -alpha * (1 - prob)**gamma * prob.clamp(min=TINY).log()
    output.copy_(torch.where(target >= 0, loss * _class_factor(weight, target.clamp(min=0)), 0.0))


@torch.no_grad()
def softmax_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor,
                                gamma: float, alpha: float) -> None:
    """Write the derivative of :func:`softmax_focal_loss_forward` by the logits into ``grad_input``.

    Args:
        input: Softmax probabilities (N, C).
        target: Class of each sample (N,); a negative one has no loss.
        weight: Class weights (C,), or empty.
        buff: Receives the derivative by the logarithm of the target's probability (N,).
        grad_input: Receives the derivative by the logits (N, C).
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    prob = _target_prob(input, target)
    rest = 1 - prob
    # the floor keeps rest^(gamma - 1) * log(1) at its limit of 0 where gamma is below 1
    slope = gamma * rest.clamp(min=TINY)**(gamma - 1) * prob * prob.clamp(min=TINY).log() - rest**gamma
    slope = torch.where(target >= 0, alpha * slope * _class_factor(weight, target.clamp(min=0)), 0.0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_positives(input, target).to(slope) - widen(input)))


def _target_prob(prob: Tensor, target: Tensor) -> Tensor:
    """Return the probability (N,) of each sample's target, of class 0 where the target is negative."""
    return widen(prob).gather(1, target.clamp(min=0)[:, None])[:, 0]
