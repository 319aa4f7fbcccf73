"""What is wrong with boxes and classes, by the annotations alone. Pure functions of records."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from mgdet_plugin.datasets.formats.box_sense import ends_inside
from mgdet_plugin.datasets.formats.dataset_report import number_of, some
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason
from mgdet_plugin.models.maths.overlaps import overlap
from mgdet_plugin.prepare.faults.findings import NOTE, WARNING, Example, Finding, found, some_of
from mgdet_plugin.prepare.faults.picture_records import TRAIN, Corners, PictureBox, PictureRecord, PictureSet

SAME = 0.95  # overlap (IoU) from which two boxes are the same
HUGE = 0.95  # share of its picture from which a box is huge
FEW = 10  # boxes of a class, below which there is little to learn from
UNEVEN = 100.0  # times as many boxes as the rarest class has
_OUTSIDE = 'outside of its image'


def box_findings(data: PictureSet) -> Iterator[Finding]:
    """Boxes that cannot be used, reach beyond their picture, are there twice, fill it or are never counted as found."""
    places: dict[str, list[Example]] = dict(degenerate=[], outside=[], beyond=[], huge=[])
    boxes = list(data.boxes())
    for record, box in boxes:
        kind, text = fault(box.corners, record.size)
        if kind:
            places[kind].append(_example(record, text, box))
    unfound = [_example(record, '', box) for record, box in boxes if box.id == 0 and record.split != TRAIN]
    twice, two_classes = _doubles(data.records)
    kinds = (
        ('degenerate', WARNING, places['degenerate'], 'have no size: skipped',
         'draw them again or take them out'),
        ('outside', WARNING, places['outside'], 'lie outside of the picture: skipped',
         'see whether they belong to another picture, or another size of it'),
        ('beyond', WARNING, places['beyond'], 'reach beyond the picture',
         'clip them, or correct them: sizes and centres are learnt as they are written'),
        ('duplicate_box', WARNING, twice, f'are there twice (one class, IoU of {SAME:g} or more)',
         'keep one: two objects in the same cells compete for them'),
        ('two_classes', WARNING, two_classes, f'are of two classes (IoU of {SAME:g} or more)',
         'keep the right one: a cell can learn one class'),
        ('huge', NOTE, places['huge'], f'fill {HUGE:.0%} of the picture or more',
         'see whether they are labels of a whole picture; objects that fill it are right'),
        ('id_zero', NOTE, unfound, 'have the annotation id 0, which pycocotools counts as never found',
         'number the annotations of sets that are measured on from 1, as init does'))
    for kind, severity, examples, what, advice in kinds:
        yield from found(kind, severity, examples, number_of(len(boxes), 'box'), what, advice)


def fault(corners: Corners, size: tuple[float, float] | None) -> tuple[str, str]:
    """What is wrong with where a box lies in its picture of (w, h): kind of finding and words; two empty texts if
    nothing is."""
    reason = degenerate_reason(corners, size)
    if reason is not None:
        return 'outside' if reason == _OUTSIDE else 'degenerate', reason
    if size is None:
        return '', ''
    x1, y1, x2, y2 = corners
    # the second is the picture turned by 180 degrees: what begins outside of it ends outside there
    if not (ends_inside(x2, y2, size) and ends_inside(size[0] - x1, size[1] - y1, size)):
        return 'beyond', f'picture of {size[0]:g} x {size[1]:g}'
    return 'huge' if (x2 - x1) * (y2 - y1) >= HUGE * size[0] * size[1] else '', ''


def _doubles(records: Sequence[PictureRecord]) -> tuple[list[Example], list[Example]]:
    """Pairs of boxes in one place: of one class, and of two."""
    twice: list[Example] = []
    two_classes: list[Example] = []
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
    """Classes without examples, in all sets or in one, with few, and how uneven they are."""
    there_in = {split: {name for name, count in class_counts(data, split).items() if count} for split in data.splits}
    somewhere = set().union(*there_in.values())
    kinds = [('absent_class', NOTE, set(data.classes) - somewhere, 'have no box in any set',
              'nothing, if the weights know them and they are to stay; else take them out of metainfo.classes')]
    if TRAIN in there_in:
        learnt = there_in[TRAIN]
        kinds.append(('untrained_class', WARNING, somewhere - learnt, 'have no box in train and some in another set',
                      'find examples, or draw the split again by class: nothing is learnt of them'))
        kinds += [('unmeasured_class', NOTE, learnt - there, f'have boxes in train and none in {split}',
                   'draw the split again by class: nothing is measured of them')
                  for split, there in there_in.items() if split != TRAIN]
    for kind, severity, names, what, advice in kinds:
        if names:
            said = some_of(len(names), number_of(len(data.classes), 'class'), what)
            listed = some([name for name in data.classes if name in names])
            yield Finding(kind, severity, len(names), f'{said}: {listed}', advice)
    yield from _rare(data)


def _rare(data: PictureSet) -> Iterator[Finding]:
    """Classes of few training boxes, by themselves and beside the others."""
    counts = class_counts(data, TRAIN)
    few = [f'{name} {count}' for name, count in sorted(counts.items(), key=lambda each: each[1]) if 0 < count < FEW]
    if few:
        said = f'{number_of(len(few), "class")} with less than {FEW} boxes in train'
        yield Finding('few_boxes', NOTE, len(few), f'{said}: {some(few)}',
                      'find more examples; of so few little is learnt')
    there = +counts
    if there:
        (most, high), (least, low) = there.most_common()[0], there.most_common()[-1]
        if high >= UNEVEN * low:
            yield Finding('uneven', NOTE, len(there), f'{most} has {high:,} boxes in train, {least} {low:,}',
                          "set class_weights='balanced' in model.bbox_head.loss, or a ClassBalancedDataset")


def class_counts(data: PictureSet, split: str) -> Counter[str]:
    """Class -> boxes of a split that can be used, 0 where there is none."""
    counts = Counter(dict.fromkeys(data.classes, 0))
    counts.update(data.classes[box.label] for record in data.of(split) for box in record.sound)
    return counts


def empty_pictures(data: PictureSet) -> Iterator[Finding]:
    """Pictures that no box is on."""
    empty = [Example(each.path, each.split) for each in data.records if not each.boxes]
    yield from found('empty_picture', NOTE, empty, number_of(len(data.records), 'picture'), 'have no box',
                     'see that there is nothing on them: they teach background')


def _example(record: PictureRecord, text: str, *boxes: PictureBox) -> Example:
    numbers = ' and '.join('[' + ', '.join(f'{side:g}' for side in box.corners) + ']' for box in boxes)
    return Example(record.path, record.split, f'{numbers}{", " if text else ""}{text}',
                   tuple(box.corners for box in boxes), tuple(box.label for box in boxes))
