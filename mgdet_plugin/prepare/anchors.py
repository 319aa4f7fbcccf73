"""Anchors for the training boxes of a config: what better ones bring, and what they cost the loaded weights."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from mgdet_plugin.common.errors import UserError, is_whole, require
from mgdet_plugin.common.files import make_folder, write_together
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.models.maths.overlaps import check_overlap_kind
from mgdet_plugin.prepare.anchor_search import (
    GENERATIONS,
    Anchors,
    as_tensor,
    best_overlap,
    by_level,
    evolve,
    k_means,
)
from mgdet_plugin.prepare.faults.data_source import config_of, gather, outside_of
from mgdet_plugin.prepare.faults.input_fit import NetworkInput, place
from mgdet_plugin.prepare.faults.picture_records import TRAIN, PictureSet

PLOT, RECORD = 'anchors.png', 'anchors.json'


@dataclass(frozen=True)
class AnchorChoice:
    """Anchors of a config beside better ones.

    Attributes:
        config: The config.
        data: Its pictures.
        sizes: (G, 2) training boxes in pixels of the input.
        old: The config's input.
        new: The same with the anchors found.
        metric: What they were looked for by.
        overlaps: Name ('config', 'k-means', 'evolution', which is rounded) -> average overlap with the best anchor.
        moved: Share of the boxes that go to another anchor, and of those that go to another level.
        stretch: By what factor the sides of a box's anchor change, the median of the boxes.
        losses: 'before' and 'after' -> term -> validation loss of weights; empty where not measured.
    """

    config: str
    data: PictureSet
    sizes: Tensor
    old: NetworkInput
    new: NetworkInput
    metric: str
    overlaps: Mapping[str, float]
    moved: tuple[float, float]
    stretch: float
    losses: Mapping[str, Mapping[str, float]]

    @property
    def anchors(self) -> Anchors:
        """The anchors found, coarse level first."""
        return [[(int(width), int(height)) for width, height in level] for level in self.new.anchors]

    @property
    def config_line(self) -> str:
        """What to write into a config."""
        return f'model = dict(bbox_head=dict(anchors={self.anchors}))'

    def lines(self) -> list[str]:
        """All that a person should read."""
        name = {'iol': 'IoL', 'iou': 'IoU'}[self.metric]
        lines = [f'{self.config}: {len(self.sizes):,} training boxes in the input of {self.old.size[0]} x '
                 f'{self.old.size[1]}', f'average {name} with the best anchor: '
                 + ', '.join(f'{each} {value:.4f}' for each, value in self.overlaps.items())]
        if self.anchors == [[(round(w), round(h)) for w, h in level] for level in self.old.anchors]:
            return [*lines, 'the anchors of the config are as good as any found: keep them']
        lines += [f'with the new anchors {self.moved[0]:.1%} of the boxes go to another anchor, {self.moved[1]:.1%} to '
                  f"another level; the sides of a box's anchor change by a factor of {self.stretch:.2f} (median)",
                  'loaded weights learnt their width and height rows for the old anchors: every box they predict is '
                  'stretched as its anchor is, until training has taught them anew. Change anchors for a training from '
                  'nothing, or where few boxes fit']
        if self.losses:
            terms = [f'{term} {before:.4g} -> {self.losses["after"][term]:.4g}'
                     for term, before in self.losses['before'].items()]
            lines.append(f'validation losses of the weights: {", ".join(terms)}')
        return [*lines, self.config_line]

    def as_json(self) -> dict[str, Any]:
        """The choice as plain data."""
        return dict(config=self.config, boxes=len(self.sizes), input=list(self.old.size), metric=self.metric,
                    old=self.old.anchors, new=self.anchors, overlaps=dict(self.overlaps), other_anchor=self.moved[0],
                    other_level=self.moved[1], stretch=self.stretch, losses=self.losses)


def choose_anchors(config: str | Path, metric: str = 'iol', generations: int = GENERATIONS, seed: int = 0,
                   measure: str | None = None, options: Mapping[str, Any] | None = None) -> AnchorChoice:
    """Look for anchors that fit a config's training boxes better than its own, as many a level.

    k-means first; evolution goes on from its anchors or the config's, whichever fit better, so that nothing is lost.

    Args:
        config: Path or name of a config with a MultiGridHead.
        metric: 'iol', by which the assigner chooses, or 'iou'.
        generations: Of the evolution.
        seed: Of all that is drawn.
        measure: Checkpoint whose validation losses are measured with the old and the new anchors. Default: none.
        options: Dotted keys of the config to set.

    Raises:
        UserError: A value is out of range; config, data or weights are missing or do not fit.
    """
    check_overlap_kind(metric)
    require(is_whole(generations, 0), 'generations must be a whole number', generations)
    require(is_whole(seed, 0), 'the seed must be a whole number', seed)
    if measure:
        check_weights_path(measure, str(config))
    cfg = config_of(config, options)
    old = NetworkInput.of_config(cfg)
    data = gather(cfg)
    sizes = place(data.of(TRAIN), old).sizes
    if not len(sizes):
        raise UserError(f'{config}: its training set has no usable box, so there is nothing to fit anchors to')
    before = as_tensor(old.anchors)
    found = k_means(sizes, len(before), metric, seed)
    overlaps = {'config': _average(sizes, before, metric), 'k-means': _average(sizes, found, metric)}
    start = found if overlaps['k-means'] > overlaps['config'] else before
    evolved = by_level(evolve(sizes, start, metric, generations, seed), len(old.strides))
    if _average(sizes, as_tensor(evolved), metric) <= overlaps['config']:  # rounding can cost more than was won
        evolved = [[(w, h) for w, h in level] for level in old.anchors]  # type: ignore[misc]
    new = replace(old, anchors=evolved)
    overlaps['evolution'] = _average(sizes, as_tensor(evolved), metric)
    moved, stretch = cost(sizes, old, new)
    losses = _losses(cfg, measure, new) if measure else {}
    return AnchorChoice(str(config), data, sizes, old, new, metric, overlaps, moved, stretch, losses)


def _average(sizes: Tensor, anchors: Tensor, metric: str) -> float:
    return float(best_overlap(sizes, anchors, metric).mean())


def cost(sizes: Tensor, old: NetworkInput, new: NetworkInput) -> tuple[tuple[float, float], float]:
    """What other anchors change for boxes (G, 2): shares that go to another anchor and to another level, and the factor
    (median) by which the sides of a box's anchor change."""
    corners = torch.cat((torch.zeros_like(sizes), sizes), 1)
    (level, anchor), (level_now, anchor_now) = (each.assigner.match_anchors(corners) for each in (old, new))
    other_level = level != level_now
    ratios = (new.assigner.anchors[level_now, anchor_now] / old.assigner.anchors[level, anchor]).log().abs()
    return ((float((other_level | (anchor != anchor_now)).float().mean()), float(other_level.float().mean())),
            float(ratios.median().exp()))


def _losses(cfg: Config, checkpoint: str, new: NetworkInput) -> dict[str, dict[str, float]]:
    """Validation losses of weights with the config's anchors and with others."""
    from mgdet_plugin.runs.held_out import HeldOut, prepare_data
    prepare_data(cfg, 'val')
    losses = {}
    for name in ('before', 'after'):
        images = HeldOut(cfg, dict(val=dict(dataloader=cfg.val_dataloader)))
        losses[name] = dict(sorted(images.measure(images.read(checkpoint))['val'].items(),
                                   key=lambda term: term[0] == 'loss'))
        cfg.model.bbox_head.anchors = [[*level] for level in new.anchors]
    return losses


def write_choice(choice: AnchorChoice, out: str | Path) -> list[Path]:
    """Write the plot and the record to a folder, which is made; both or none. Returns their paths.

    Raises:
        UserError: It is a folder of the data, or cannot be written to.
    """
    folder = make_folder(outside_of(choice.data, Path(out)))
    from mgdet_plugin.prepare.anchor_plot import sizes_figure
    titles = {f'{name}: average overlap {choice.overlaps[key]:.3f}': into for name, key, into in (
        ('anchors of the config', 'config', choice.old), ('anchors found', 'evolution', choice.new))}
    contents = {folder / RECORD: json.dumps(choice.as_json(), indent=1).encode(),
                folder / PLOT: sizes_figure(choice.sizes, titles)}
    write_together({path: methodcaller('write', content) for path, content in contents.items()})
    return list(contents)
