"""Anchors for given boxes: k-means, then evolution, by the overlap that the assigner goes by. Pure functions.

Shapes: G boxes, K anchors; sizes are (width, height) in pixels of the network's input.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mgdet_plugin.common.errors import require
from mgdet_plugin.models.maths.overlaps import centred_overlap

STEPS = 100  # of k-means, which ends earlier where nothing changes
GENERATIONS = 1_000
MOST = 20_000  # boxes that evolution measures by, drawn at random
_RATE, _SPREAD = 0.9, 0.1  # share of the sides that a generation changes, and by how much
Anchors = list[list[tuple[int, int]]]


def best_overlap(sizes: Tensor, anchors: Tensor, metric: str = 'iol') -> Tensor:
    """Overlap (G,) of each box (G, 2) with the anchor (K, 2) that fits it best, both on one centre."""
    return centred_overlap(sizes[:, None], anchors[None], metric).max(1).values


def k_means(sizes: Tensor, count: int, metric: str = 'iol', seed: int = 0) -> Tensor:
    """Anchors (K, 2) as centres of clusters of boxes, the distance being 1 - overlap (Redmon and Farhadi, YOLO9000).

    A centre is the mean of its boxes in logarithms, since overlaps go by ratios; one that loses all its boxes takes the
    box that fits worst. What is returned is the best of the steps.

    Args:
        sizes: (G, 2) of at least K boxes of different sizes.
        count: K.
        metric: 'iol' or 'iou'.
        seed: Of the boxes that the centres start from.
    """
    different = sizes.unique(dim=0)
    require(len(different) >= count, f'{count} anchors need boxes of as many sizes', len(different))
    start = np.random.default_rng(seed).choice(len(different), count, replace=False)
    centres, owner = different[torch.from_numpy(start)], None
    best, reached = centres, -1.0
    for _ in range(STEPS):
        overlaps = centred_overlap(sizes[:, None], centres[None], metric)
        fits, nearest = overlaps.max(1)
        if float(fits.mean()) > reached:
            best, reached = centres, float(fits.mean())
        if owner is not None and bool((nearest == owner).all()):
            break
        owner = nearest
        centres = torch.stack([sizes[owner == each].log().mean(0).exp() if bool((owner == each).any()) else
                               sizes[fits.argmin()] for each in range(count)])
    return best


def evolve(sizes: Tensor, anchors: Tensor, metric: str = 'iol', generations: int = GENERATIONS,
           seed: int = 0) -> Tensor:
    """Anchors (K, 2) that fit boxes no worse than those given: sides are changed at random, and what is better stays.

    Args:
        sizes: (G, 2); of more than 20,000 so many are drawn to measure by.
        anchors: (K, 2) to begin with.
        metric: 'iol' or 'iou'.
        generations: How often they are changed.
        seed: Of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    if len(sizes) > MOST:
        sizes = sizes[torch.from_numpy(rng.choice(len(sizes), MOST, replace=False))]
    reached = float(best_overlap(sizes, anchors, metric).mean())
    for _ in range(generations):
        factors = np.where(rng.random(anchors.shape) < _RATE, np.exp(_SPREAD * rng.standard_normal(anchors.shape)
                                                                     * rng.random()), 1.0)
        changed = anchors * torch.from_numpy(factors).to(anchors)
        found = float(best_overlap(sizes, changed, metric).mean())
        if found > reached:
            anchors, reached = changed, found
    return anchors


def by_level(anchors: Tensor, levels: int) -> Anchors:
    """Anchors (K, 2) in whole pixels: the largest to the first, coarsest level, in each the smallest first."""
    whole = [(max(1, round(width)), max(1, round(height))) for width, height in anchors.tolist()]
    ordered = sorted(whole, key=lambda size: (size[0] * size[1], size))
    per_level = len(ordered) // levels
    return [ordered[start:start + per_level] for start in range(0, len(ordered), per_level)][::-1]


def as_tensor(anchors: Sequence[Sequence[tuple[float, float]]]) -> Tensor:
    """Anchors of all levels in one row, (K, 2)."""
    return torch.tensor([size for level in anchors for size in level], dtype=torch.float32)
