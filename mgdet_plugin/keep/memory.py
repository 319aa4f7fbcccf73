"""Which of the old pictures are trained on and which are held out."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from mgdet_plugin.common.errors import UserError, require

SIZES = (32 ** 2, 96 ** 2)  # pixels of area between small, medium and large objects, as COCO's metric has them


def split_held_out(names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Split pictures into those to train on and those to measure on.

    The pictures whose names have the smallest hashes are held out, so one that is added or taken away moves at most
    one other across.

    Args:
        names: A name a picture, the same on every machine.
        share: The share to hold out, in [0, 1): at least one picture where it is above 0, and never all.

    Returns:
        Indices of both parts, rising.

    Raises:
        UserError: There is not one for each part.
    """
    if not share:
        return list(range(len(names))), []
    if len(names) < 2:
        raise UserError(f'keep.held_out {share:g} of {len(names)} picture leaves none to train on; give more '
                        'pictures, or held_out=0')
    count = min(max(1, round(share * len(names))), len(names) - 1)
    hashes = [hashlib.blake2b(name.encode(errors='surrogateescape')).digest() for name in names]
    order = sorted(range(len(names)), key=hashes.__getitem__)
    return sorted(order[count:]), sorted(order[:count])


def describe(found: InstanceData, num_classes: int) -> Tensor:
    """What detections say of their picture, as a vector (3 * C,): how much of each class, small, medium and large.

    Scores are added up to an expected number of objects, and of that the square root is taken, after which numbers
    differ as much among many objects as among few (Anscombe, 1948): a crowded picture is not far from all others for
    its crowd alone.

    Args:
        found: ``bboxes`` (M, 4) in pixels of the input, ``scores`` (M,) and ``labels`` (M,).
        num_classes: C.
    """
    boxes: Tensor = found.bboxes.double()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    size = torch.bucketize(areas, areas.new_tensor(SIZES), right=True)
    counts = boxes.new_zeros(len(SIZES) + 1, num_classes)
    counts.index_put_((size, found.labels), found.scores.double(), accumulate=True)
    return counts.flatten().sqrt()


def spread(descriptions: Tensor, count: int) -> list[int]:
    """Choose pictures that are as different as they can be, so that none of all is far from a chosen one.

    The greedy k-centre algorithm (Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), which
    at most doubles the least possible distance, as used for core-sets by Sener & Savarese (arXiv 1708.00489, algorithm
    1). It starts from the most typical picture, the one nearest to the mean, and adds the one farthest from all chosen
    ones. Of equal ones the first is taken.

    Args:
        descriptions: (N, F), finite, a picture a row.
        count: How many to choose, at most N.

    Returns:
        Indices in the order of choice: the first k are the choice of k.

    Raises:
        ValueError: (a UserError) for another count or numbers that are not finite.
    """
    require(0 < count <= len(descriptions), f'from 1 to {len(descriptions)} pictures can be chosen', count)
    strange = descriptions[~torch.isfinite(descriptions)]
    require(not len(strange), 'descriptions of pictures must be finite', strange[:1].tolist())
    points = descriptions.double()
    chosen = [int(torch.linalg.vector_norm(points - points.mean(0), dim=1).argmin())]
    nearest = points.new_full((len(points), ), torch.inf)  # distance of each picture from the chosen ones
    while len(chosen) < count:
        nearest = nearest.minimum(torch.linalg.vector_norm(points - points[chosen[-1]], dim=1))
        nearest[chosen[-1]] = -1  # a copy of it, at 0, comes before it
        chosen.append(int(nearest.argmax()))
    return chosen
