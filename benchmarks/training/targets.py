"""Targets and loss beside the network they are for, as boxes grow in number, and the assigner beside a plain loop."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.structures import DetDataSample

from benchmarks.speed import detectors, in_turns
from benchmarks.training.steps import IMAGES, batch_of, row
from mgdet_plugin.models.maths.grid import CellGrid
from mgdet_plugin.models.multigrid_assigner import CELLS_GUARANTEED, gather_instances

SIDE, BOXES = 608, 100
PLANNED = 48  # images of a step in the default config
COUNTS = (1, 10, 50, 100, 200)
Cell = tuple[int, int, int, int]
Target = tuple[int, int, int, float, float, float, float]


def target_rows(repeats: int = 5) -> list[dict[str, Any]]:
    """What targets and loss cost, gradients down to the raw maps included.

    Returns:
        A row against the network's forward and backward pass, one of the exponent from 50 to 200 boxes an image against
        1, and two of the assigner's reference rule against a loop over boxes, anchors and cells.
    """
    detector: Any = detectors(torch.device('cpu'))[0].train()
    head, sizes = detector.bbox_head, [(SIDE // stride, SIDE // stride) for stride in (32, 16, 8)]
    maps = [torch.randn(IMAGES, head.num_channels, *size, requires_grad=True) for size in sizes]
    image = torch.rand(1, 3, SIDE, SIDE)

    def network() -> None:
        detector.zero_grad()
        sum(each.square().mean() for each in detector.bbox_head(detector.extract_feat(image))).backward()

    def loss(samples: Sequence[DetDataSample]) -> None:
        terms = head.loss_by_feat(maps, [each.gt_instances for each in samples], [each.metainfo for each in samples])
        sum(terms.values()).backward()

    given = {count: batch_of(IMAGES, SIDE, count)['data_samples'] for count in COUNTS}
    seconds = in_turns({count: partial(loss, samples) for count, samples in given.items()}, repeats)
    whole = IMAGES * in_turns(dict(network=network), min(repeats, 2))['network']
    exponent = math.log(seconds[200] / seconds[50]) / math.log(4)
    return [row('targets_and_loss', f"the network's forward and backward of {IMAGES} images of {SIDE} pixels, {BOXES} "
                'boxes each', 's', seconds[BOXES], whole),
            row('loss_growth', f'linear growth, 50 to 200 boxes an image; {_listed(seconds)}', 'exponent', exponent,
                1), *rule_rows(head, sizes, 3 * repeats)]


def rule_rows(head: Any, sizes: Sequence[tuple[int, int]], repeats: int) -> list[dict[str, Any]]:
    """The assigner as the head calls it beside the plain loop, for the images of one step here and of the plan's."""
    assigner, rows = head.assigner, []
    grid = CellGrid.build(sizes, assigner.strides, torch.device('cpu'))
    for images in (IMAGES, PLANNED):
        objects = [each.gt_instances for each in batch_of(images, SIDE, BOXES)['data_samples']]
        loop = partial(assign_by_loop, objects, assigner.anchors.tolist(), assigner.strides, sizes)
        rule = in_turns(dict(ours=partial(assigner.assign, objects, sizes, grid), loop=partial(_as_tensor, loop)),
                        repeats)
        rows.append(row(f'reference_rule_{images}', f'a loop over {images * BOXES} boxes', 's', rule['ours'],
                        rule['loop']))
    return rows


def assign_by_loop(objects: Sequence[Any], anchors: Sequence[Sequence[Sequence[float]]], strides: Sequence[int],
                   sizes: Sequence[tuple[int, int]]) -> dict[Cell, Target]:
    """The reference's assignment, a box, an anchor and a cell at a time; boxes of positive size.

    Returns:
        (image, level, row, column) of each positive cell -> index of its object in the batch, anchor, class and (x, y,
        w, h) as the loss compares them.
    """
    boxes, labels, images = gather_instances(objects)
    found: dict[Cell, Target] = {}
    for index, (image, label, box) in enumerate(zip(images.tolist(), labels.tolist(), boxes.tolist())):
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        best, level, anchor = 0.0, 0, 0
        for place, each in enumerate(anchors):
            for number, (wide, high) in enumerate(each):
                fit = min(width, wide) * min(height, high) / max(width * height, wide * high)
                if fit > best:
                    best, level, anchor = fit, place, number
        centre_x, centre_y = ((low + high) / 2 / strides[level] for low, high in ((left, right), (top, bottom)))
        column, line, held = math.floor(centre_x), math.floor(centre_y), 0
        wide, high = anchors[level][anchor]
        for x in (column - 1, column, column + 1):
            for y in (line - 1, line, line + 1):
                cell = (image, level, y, x)
                if 0 <= x < sizes[level][1] and 0 <= y < sizes[level][0] and (
                        cell not in found or held < CELLS_GUARANTEED):
                    found[cell] = (index, anchor, label, centre_x - x, centre_y - y, math.log(width / wide),
                                   math.log(height / high))
                    held += 1
    return found


def _as_tensor(loop: Callable[[], dict[Cell, Target]]) -> torch.Tensor:
    return torch.tensor([(*cell, *target) for cell, target in loop().items()])


def _listed(seconds: Mapping[int, float]) -> str:
    return ', '.join(f'{count}: {1e3 * each:.1f} ms' for count, each in seconds.items())
