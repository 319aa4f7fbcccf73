"""Blends of two states of one model: w = (1 - alpha) * pretrained + alpha * finetuned (WiSE-FT, arXiv 2109.01903)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mgdet_plugin.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """The shares in rising order.

    Raises:
        UserError: There are none, one is not within [0, 1], or one is given twice.
    """
    for alpha in alphas:
        if not 0 <= alpha <= 1:  # NaN is not, either
            raise UserError(f'--alphas must lie within 0 and 1, got {alpha:g}: 0 is the pretrained, 1 the fine-tuned '
                            'file')
    twice = [alpha for index, alpha in enumerate(alphas) if alpha in alphas[:index]]
    if twice or not alphas:
        raise UserError(f'--alphas names {twice[0]:g} twice; give each share once' if twice else
                        '--alphas is empty; give shares of the fine-tuned weights, such as 0 0.5 1')
    return tuple(sorted(map(float, alphas)))


def blend_states(pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) * pretrained + alpha * finetuned of floating tensors; others are the fine-tuned ones.

    In float64, rounded once: what is equal in both stays so bit for bit. Alpha 0 and 1 give the tensors themselves.
    """
    if alpha in (0, 1):
        return dict(finetuned if alpha else pretrained)
    return {key: pretrained[key].double().lerp(value.double(), alpha).to(value.dtype)
            if value.is_floating_point() else value for key, value in finetuned.items()}
