"""How the boxes of a set lie in the network's input: their sizes against anchors, their centres against cells.

Shapes: G boxes of all pictures, L levels, A anchors of each, K = L * A.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import iter_dataset_cfgs
from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.datasets.formats.picture_files import picture_size
from mgdet_plugin.models import MultiGridAssigner
from mgdet_plugin.models.maths.letterbox import letterbox_boxes, letterbox_geometry
from mgdet_plugin.models.maths.overlaps import centred_overlap
from mgdet_plugin.prepare.faults.findings import NOTE, WARNING, Example, Finding, some_of
from mgdet_plugin.prepare.faults.picture_records import PictureBox, PictureRecord

TINY = 4.0  # pixels of the input
LEAST_FIT = 0.25  # overlap (IoL) with the best anchor
MANY = 0.05  # share of the boxes from which what concerns single ones is a warning


@dataclass(frozen=True)
class NetworkInput:
    """What pictures are fitted into, and what their boxes are assigned to.

    Attributes:
        size: (W, H) in pixels.
        centred: Whether the picture lies in the middle (a letterbox), or at the upper left.
        anchors: Per level, coarse first, (width, height) of each anchor in pixels.
        strides: Of each level in pixels.
        conflict: The assigner's rule for a cell that several objects claim.
    """

    size: tuple[int, int]
    centred: bool
    anchors: Sequence[Sequence[tuple[float, float]]]
    strides: Sequence[int]
    conflict: str = 'reference'

    @classmethod
    def of_config(cls, cfg: Config) -> NetworkInput:
        """That of a config: its head's anchors, and the size by the training pipeline's last step that fits pictures.

        Raises:
            UserError: The head is no MultiGridHead, or no step fits pictures into a size.
        """
        head = cfg.model.get('bbox_head') or {}
        if not str(head.get('type')).endswith('MultiGridHead') or not head.get('anchors'):
            raise UserError(f'model.bbox_head is {head.get("type")}, and anchors are those of MultiGridHead; of other '
                            "heads mmdet's analysis_tools/optimize_anchors looks at anchors")
        steps = list(_steps(next(iter_dataset_cfgs(cfg.train_dataloader.dataset)).get('pipeline') or []))
        fits = [step for step in steps if str(step.get('type')).endswith(('Letterbox', 'Resize'))
                and isinstance(step.get('scale'), (list, tuple)) and len(step['scale']) == 2]
        if not fits:
            raise UserError('the training pipeline has no Letterbox and no Resize with scale=(width, height), so the '
                            'size of the input cannot be told')
        width, height = fits[-1]['scale']
        anchors = [[(float(w), float(h)) for w, h in level] for level in head['anchors']]
        return cls((int(width), int(height)), str(fits[-1]['type']).endswith('Letterbox'), anchors,
                   tuple(head['strides']), (head.get('assigner') or {}).get('conflict', 'reference'))

    @property
    def assigner(self) -> MultiGridAssigner:
        """What assigns boxes to levels, anchors and cells in training."""
        return MultiGridAssigner(self.anchors, self.strides, self.conflict)

    @property
    def map_sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each level in cells."""
        return [(-(-self.size[1] // stride), -(-self.size[0] // stride)) for stride in self.strides]


def _steps(pipeline: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The steps that act on every picture: those inside a StagedMix act on some."""
    return (step for step in pipeline if 'transforms' not in step)


@dataclass(frozen=True)
class PlacedBoxes:
    """The usable boxes of a split in the network's input.

    Attributes:
        corners: (G, 4) x1, y1, x2, y2 in pixels of the input.
        picture: (G,) place of its picture among ``records``.
        records: The pictures.
        owners: The G boxes as they are annotated, with their pictures.
    """

    corners: Tensor
    picture: Tensor
    records: Sequence[PictureRecord]
    owners: Sequence[tuple[PictureRecord, PictureBox]]

    @property
    def sizes(self) -> Tensor:
        """(G, 2) width and height in pixels of the input."""
        return self.corners[:, 2:] - self.corners[:, :2]


def place(records: Sequence[PictureRecord], into: NetworkInput) -> PlacedBoxes:
    """The boxes of pictures as they lie in the input without augmentation."""
    corners, picture = [torch.zeros(0, 4)], []
    owners: list[tuple[PictureRecord, PictureBox]] = []
    for index, record in enumerate(records):
        width, height = record.size or picture_size(record.path)
        if not (record.sound and width and height):
            continue
        left, top, new_w, new_h = letterbox_geometry((round(width), round(height)), into.size)
        boxes = torch.tensor([box.corners for box in record.sound], dtype=torch.float32)
        corners.append(letterbox_boxes(boxes, (new_w / width, new_h / height),
                                       (top, 0, left, 0) if into.centred else (0, 0, 0, 0)))
        owners += [(record, box) for box in record.sound]
        picture += [index] * len(boxes)
    return PlacedBoxes(torch.cat(corners), torch.tensor(picture, dtype=torch.long), records, owners)


@dataclass(frozen=True)
class Fit:
    """How boxes fit anchors and cells.

    Attributes:
        best: (G,) overlap (IoL) with the best anchor.
        anchor: (G,) which of the K that is.
        shares_centre: (G,) whether another object of its picture and level has its centre in the same cell.
        cells: (G,) cells that its 3x3 block has inside the map.
        held: (G,) those of them that are left to it by the assigner.
    """

    best: Tensor
    anchor: Tensor
    shares_centre: Tensor
    cells: Tensor
    held: Tensor


def fit(boxes: PlacedBoxes, into: NetworkInput) -> Fit:
    """Hold boxes against anchors and cells, as the assigner of a training does, without augmentation."""
    assigner = into.assigner
    level, anchor = assigner.match_anchors(boxes.corners)
    per_level = assigner.anchors.shape[1]
    best = centred_overlap(boxes.sizes, assigner.anchors[level, anchor])
    stride = torch.tensor(into.strides)[level][:, None]
    centre = ((boxes.corners[:, :2] + boxes.corners[:, 2:]) / 2 / stride).floor().long()
    limits = torch.tensor(into.map_sizes).flip(1)[level]  # (G, 2) as (W, H)
    reach = (centre + 2).minimum(limits) - (centre - 1).clamp(min=0)  # columns and rows of the block in the map
    place_of = torch.cat((boxes.picture[:, None], level[:, None], centre), 1)
    _, which, there = place_of.unique(dim=0, return_inverse=True, return_counts=True)
    held = torch.zeros(len(level), dtype=torch.long)
    if len(level):
        counts = torch.bincount(boxes.picture, minlength=len(boxes.records)).tolist()
        labels = torch.zeros(len(level), dtype=torch.long)
        objects = [InstanceData(bboxes=corners, labels=label)
                   for corners, label in zip(boxes.corners.split(counts), labels.split(counts))]
        held = torch.bincount(assigner.assign(objects, into.map_sizes).gt, minlength=len(level))
    return Fit(best, level * per_level + anchor, there[which] > 1, reach.clamp(min=0).prod(1), held)


def fit_findings(boxes: PlacedBoxes, into: NetworkInput, found: Fit, tiny: float = TINY,
                 least: float = LEAST_FIT) -> Iterator[Finding]:
    """Boxes that are tiny in the input or fit no anchor, cells that several objects want, anchors that none takes."""
    total = len(boxes.owners)
    if not total:
        return
    side = f'{into.size[0]} x {into.size[1]}'
    smallest = boxes.sizes.min(1).values
    texts = [f'{width:.1f} x {height:.1f} in the input, IoL {best:.2f}, holds {held} of {cells} cells'
             for (width, height), best, held, cells in zip(
                 boxes.sizes.tolist(), found.best.tolist(), found.held.tolist(), found.cells.tolist())]
    shares_others = (found.held < found.cells) & ~found.shares_centre
    larger = 'train at a larger input'
    # kind, which, what is worst about them, share of all from which it is a warning, what, advice
    kinds: tuple[tuple[str, Tensor, Tensor, float, str, str], ...] = (
        ('tiny', smallest < tiny, smallest, MANY, f'have a side below {tiny:g} pixels in the input of {side}',
         f'{larger}, cut the pictures into parts, or leave them out: a cell of the finest level is '
         f'{min(into.strides)} pixels'),
        ('no_anchor', found.best < least, found.best, MANY, f'fit no anchor: IoL with the best one below {least:g}',
         'see what better anchors would bring and cost: mgdet anchors CFG'),
        ('no_cell', found.held == 0, found.best, 0.0,
         f'are left no cell by the rule {into.conflict!r}, so nothing is learnt of them',
         f'{larger}, or see whether they are there twice'),
        ('shared_centre', found.shares_centre, found.held, 2 * MANY,
         'have the centre in a cell in which another object of the same level has its own',
         f'{larger}: one cell predicts one object'),
        ('shared_cells', shares_others, found.held, 1.0, 'give some cells of the 3x3 block to a neighbour',
         'nothing: the cells they keep learn them; a larger input leaves them more'))
    for kind, mask, worst, many, what, advice in kinds:
        chosen = mask.nonzero().flatten()
        if len(chosen):
            chosen = chosen[worst[chosen].argsort(stable=True)]
            yield Finding(kind, WARNING if len(chosen) > many * total else NOTE, len(chosen),
                          some_of(len(chosen), number_of(total, 'training box'), what), advice,
                          _examples(boxes, chosen.tolist(), texts, whole=kind.startswith('shared')))
    yield from _unused(into, found)


def _unused(into: NetworkInput, found: Fit) -> Iterator[Finding]:
    anchors = [size for level in into.anchors for size in level]
    counts = torch.bincount(found.anchor, minlength=len(anchors)).tolist()
    unused = [f'{width:g}x{height:g}' for (width, height), count in zip(anchors, counts) if not count]
    if unused:
        said = some_of(len(unused), number_of(len(anchors), 'anchor'), 'fit no box best')
        yield Finding('unused_anchor', NOTE, len(unused), f'{said}: {", ".join(unused)}',
                      'nothing where loaded weights are fine-tuned; before a training from nothing see mgdet anchors '
                      'CFG')


def _examples(boxes: PlacedBoxes, chosen: Sequence[int], texts: Sequence[str], whole: bool) -> list[Example]:
    """An example a box, or a ``whole`` picture with all its boxes that were chosen."""
    groups: dict[int, list[int]] = {}
    for index in chosen:
        groups.setdefault(int(boxes.picture[index]) if whole else index, []).append(index)
    return [Example(boxes.owners[group[0]][0].path, boxes.owners[group[0]][0].split,
                    texts[group[0]] if len(group) == 1 else number_of(len(group), 'box'),
                    tuple(boxes.owners[each][1].corners for each in group),
                    tuple(boxes.owners[each][1].label for each in group)) for group in groups.values()]
