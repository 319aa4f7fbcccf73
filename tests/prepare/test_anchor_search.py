"""Anchors that fit: found again where they are known, never worse than before, the same for the same seed."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.prepare.anchor_search import as_tensor, best_overlap, by_level, evolve, k_means

KNOWN = torch.tensor([[12., 20.], [40., 30.], [90., 160.]])


def around(centres: torch.Tensor, each: int = 60, seed: int = 0) -> torch.Tensor:
    """Boxes a few per cent about some sizes."""
    noise = torch.randn(each, len(centres), 2, generator=torch.Generator().manual_seed(seed))
    return (centres * (0.03 * noise).exp()).reshape(-1, 2)


@pytest.mark.parametrize('metric', ['iol', 'iou'])
def test_known_sizes_are_found(metric: str) -> None:
    found = k_means(around(KNOWN), 3, metric, seed=1)
    found = found[found.prod(1).argsort()]
    assert torch.allclose(found, KNOWN, rtol=0.03)


def test_overlaps_are_those_of_centred_boxes() -> None:
    sizes, anchors = torch.tensor([[10., 20.], [30., 10.]]), torch.tensor([[10., 10.], [20., 20.]])
    # 10x20 in 20x20: 200/400 either way; 30x10 and 20x20: 200 in common, 400 the larger, 500 the union
    assert best_overlap(sizes, anchors, 'iol').tolist() == pytest.approx([0.5, 0.5])
    assert best_overlap(sizes, anchors, 'iou').tolist() == pytest.approx([0.5, 0.4])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2 ** 31), st.sampled_from(['iol', 'iou']), st.integers(1, 6))
def test_evolution_is_never_worse_and_repeats_itself(seed: int, metric: str, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = (torch.randn(80, 2, generator=generator) + 3).exp()
    start = (torch.randn(count, 2, generator=generator) + 3).exp()
    found = evolve(sizes, start, metric, generations=20, seed=seed)
    assert best_overlap(sizes, found, metric).mean() >= best_overlap(sizes, start, metric).mean()
    assert torch.equal(found, evolve(sizes, start, metric, generations=20, seed=seed))
    assert torch.equal(k_means(sizes, count, metric, seed), k_means(sizes, count, metric, seed))


def test_evolution_helps() -> None:
    sizes = around(KNOWN)
    before, after = torch.tensor([[20., 20.], [50., 50.], [99., 99.]]), 0.9
    assert best_overlap(sizes, evolve(sizes, before, generations=300)).mean() > after


def test_coarse_levels_get_the_large_ones() -> None:
    anchors = by_level(torch.tensor([[10.4, 5.], [90., 91.], [0.2, 3.], [30., 31.6]]), 2)
    assert anchors == [[(30, 32), (90, 91)], [(1, 3), (10, 5)]]
    assert as_tensor(anchors).tolist() == [[30, 32], [90, 91], [1, 3], [10, 5]]


def test_too_few_sizes_are_refused() -> None:
    with pytest.raises(UserError, match='9 anchors need boxes of as many sizes, got 2'):
        k_means(torch.tensor([[1., 2.], [1., 2.], [3., 4.]]), 9)
