"""What is wrong with boxes and classes, by the annotations alone. Pure functions of records."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from mgdet_plugin.datasets.formats.box_sense import ends_inside
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason
from mgdet_plugin.models.maths.overlaps import overlap
from mgdet_plugin.prepare.findings import NOTE, WARNING, Example, Finding
from mgdet_plugin.prepare.picture_records import TRAIN, PictureBox, PictureRecord, PictureSet

SAME = 0.95  # overlap (IoU) from which two boxes are the same
HUGE = 0.95  # share of its picture from which a box is huge
FEW = 10  # boxes of a class, below which there is little to learn from
UNEVEN = 100.0  # times as many boxes as the rarest class has
_OUTSIDE = 'outside of its image'


def box_findings(data: PictureSet) -> Iterator[Finding]:
    """Boxes that cannot be used, reach beyond their picture, are there twice or fill it."""
    degenerate, outside, beyond, huge = [], [], [], []
    total = 0
    for record, box in data.boxes():
        total += 1
        reason = degenerate_reason(box.corners, record.size)
        x1, y1, x2, y2 = box.corners
        if reason is not None:
            (outside if reason == _OUTSIDE else degenerate).append(_example(record, reason, box))
        elif record.size is not None:
            width, height = record.size
            # the second is the picture turned upside down: what begins outside ends outside there
            if not (ends_inside(x2, y2, record.size) and ends_inside(width - x1, height - y1, record.size)):
                beyond.append(_example(record, f'picture of {width:g} x {height:g}', box))
            elif (x2 - x1) * (y2 - y1) >= HUGE * width * height:
                huge.append(_example(record, '', box))
    twice, two_classes = _doubles(data.records)
    kinds = (
        ('degenerate', WARNING, degenerate, 'have no size: they are skipped', 'draw them again or take them out'),
        ('outside', WARNING, outside, 'lie outside of their picture: they are skipped',
         'see whether they belong to another picture, or another size of it'),
        ('beyond', WARNING, beyond, 'reach beyond their picture', 'clip them, or correct them: sizes and centres are '
         'learnt as they are written'),
        ('duplicate_box', WARNING, twice, f'are there twice (one class, IoU of {SAME:g} or more)',
         'keep one: two objects in the same cells compete for them'),
        ('two_classes', WARNING, two_classes, f'are of two classes (IoU of {SAME:g} or more)',
         'keep the right one: a cell can learn one class'),
        ('huge', NOTE, huge, f'fill {HUGE:.0%} of their picture or more', 'see whether they are labels of a whole '
         'picture; objects that fill it are right'))
    for kind, severity, found, what, advice in kinds:
        if found:
            yield Finding(kind, severity, len(found), f'{len(found):,} of {total:,} boxes {what}', advice, found)


def _doubles(records: Sequence[PictureRecord]) -> tuple[list[Example], list[Example]]:
    """Pairs of boxes in one place: of one class, and of two."""
    twice, two_classes = [], []
    for record in records:
        if len(record.sound) < 2:
            continue
        corners = torch.tensor([box.corners for box in record.sound], dtype=torch.float64)
        pairs = (overlap(corners[:, None], corners[None]) >= SAME).triu(1).nonzero().tolist()
        for first, second in pairs:
            both = record.sound[first], record.sound[second]
            (twice if both[0].label == both[1].label else two_classes).append(_example(record, '', *both))
    return twice, two_classes


def class_findings(data: PictureSet) -> Iterator[Finding]:
    """Classes without examples in a split, with few, and how uneven they are."""
    for split in data.splits:
        counts = class_counts(data, split)
        none = [name for name in data.classes if not counts[name]]
        learnt = split == TRAIN
        if none and (learnt or len(none) < len(data.classes)):
            yield Finding(
                'empty_class', WARNING if learnt else NOTE, len(none),
                f'{len(none)} of {len(data.classes)} classes have no box in {split}: {some(none)}',
                'find examples, or take them out of metainfo.classes: nothing is learnt of them' if learnt else
                'nothing is measured of them; draw the split again by class')
    counts = class_counts(data, TRAIN)
    few = [f'{name} {count}' for name, count in sorted(counts.items(), key=lambda each: each[1]) if 0 < count < FEW]
    if few:
        yield Finding('few_boxes', NOTE, len(few), f'{len(few)} classes have less than {FEW} boxes in train: {some(few)}',
                      'find more examples; of so few little is learnt')
    there = +counts
    if there:
        (most, high), (least, low) = there.most_common()[0], there.most_common()[-1]
        if high >= UNEVEN * low:
            yield Finding('uneven', NOTE, len(there), f'{most} has {high:,} boxes in train, {least} {low:,}',
                          "set class_weights='balanced' in model.bbox_head.loss, or a ClassBalancedDataset")


def class_counts(data: PictureSet, split: str) -> Counter[str]:
    """Class -> boxes of a split that can be used, 0 where there is none."""
    counts = Counter({name: 0 for name in data.classes})
    counts.update(data.classes[box.label] for record in data.of(split) for box in record.sound)
    return counts


def empty_pictures(data: PictureSet) -> Iterator[Finding]:
    """Pictures that no box is on."""
    empty = [Example(each.path, each.split) for each in data.records if not each.boxes]
    if empty:
        yield Finding('empty_picture', NOTE, len(empty), f'{len(empty):,} of {len(data.records):,} pictures have no box',
                      'see that there is nothing on them: they teach background', empty)


def _example(record: PictureRecord, text: str, *boxes: PictureBox) -> Example:
    numbers = ' and '.join('[' + ', '.join(f'{side:g}' for side in box.corners) + ']' for box in boxes)
    return Example(record.path, record.split, f'{numbers}{", " if text else ""}{text}',
                   tuple(box.corners for box in boxes), tuple(box.label for box in boxes))
