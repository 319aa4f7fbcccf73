"""A sheet of training samples: the truth, the cells and anchors it is assigned to, what the targets decode to."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.structures import InstanceData
from PIL import Image

from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.deploy.sheet import (
    Box,
    Colour,
    class_colours,
    draw_boxes,
    rgb_of_input,
    scale_of,
    side_by_side,
    with_caption,
    write_sheet,
)
from mgdet_plugin.prepare.batches.assigned_objects import AssignedObjects
from mgdet_plugin.prepare.batches.stage_batches import StageSample

_WHITE, _GREY = (255, 255, 255), (128, 128, 128)
_NAMED = 12  # objects of a sample; more are told apart by their colours alone
_LEGEND = 30  # classes, more are not listed


class SeenSample(NamedTuple):
    """A sample, its objects, and what weights find in it: boxes in pixels of the input; None where none are asked."""

    sample: StageSample
    objects: AssignedObjects
    found: InstanceData | None


def write_batch_sheet(seen: Sequence[SeenSample], out: Path, metainfo: Mapping[str, Any], line: str,
                      beside: str = '') -> None:
    """Draw samples on a sheet.

    Args:
        seen: The samples.
        out: The PNG.
        metainfo: Of the dataset: ``classes`` and maybe ``palette``.
        line: What is written first.
        beside: What is drawn beside each sample, in words; nothing is by default.
    """
    colours, names = class_colours(metainfo), metainfo['classes']
    tiles = [_tile(number, each, colours, names) for number, each in enumerate(seen, 1)]
    write_sheet(tiles, out, list(_heading(seen, line, beside, colours, names)))


def _heading(seen: Sequence[SeenSample], line: str, beside: str, colours: Sequence[Colour],
             names: Sequence[str]) -> Iterator[tuple[str, Colour | None]]:
    taught = any(len(each.objects.cells) for each in seen)
    yield line, None
    yield '', None
    yield ('Outlines: the truth' + (
        '; shaded: the cells it is assigned to; dashed: its anchor; white corners: what its targets decode to'
        if taught else '') + (f'. On the right: {beside}' if beside else '') + '. Classes:'), None
    there = sorted({int(label) for each in seen for objects in (each.objects, each.found) if objects is not None
                    for label in objects.labels})
    for label in there[:_LEGEND]:
        yield str(names[label]), colours[label]
    if len(there) > _LEGEND:
        yield f'and {len(there) - _LEGEND} more', None


def _tile(number: int, seen: SeenSample, colours: Sequence[Colour], names: Sequence[str]) -> Image.Image:
    """A sample with its caption, and beside it what is found in it."""
    picture = rgb_of_input(seen.sample.inputs)
    scale = scale_of(picture.size)
    views = [draw_boxes(picture, _truth(seen.objects, colours, names), scale)]
    if seen.found is not None:
        found = seen.found
        views.append(draw_boxes(picture, [
            Box(corners, colours[label], f'{names[label]} {score:.2f}') for corners, label, score in zip(
                found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())], scale))
    return with_caption(side_by_side(views), f'{number}: {_caption(seen)}')


def _caption(seen: SeenSample) -> str:
    how = ', '.join(seen.sample.augmented or ())
    if seen.sample.old:
        return f'OLD IMAGE, kept without labels{", " if how else ""}{how}'
    said = f'{how or "not mixed"}, ' if seen.sample.augmented is not None else ''
    return f'{said}{number_of(len(seen.objects.boxes), "object")}, {Path(seen.sample.path).name}'


def _truth(objects: AssignedObjects, colours: Sequence[Colour], names: Sequence[str]) -> list[Box]:
    """All that is drawn of a sample's objects."""
    labels = objects.labels.tolist()
    own = [colours[label] for label in labels]
    owners = objects.owner.tolist()
    texts = [names[label] if len(labels) <= _NAMED else '' for label in labels]
    return [
        *(Box(cell, own[owner], '', shaded=True) for cell, owner in zip(objects.cells.tolist(), owners)),
        *(Box(anchor, colour, '', dashed=True) for anchor, colour in zip(objects.anchors.tolist(), own)),
        *(Box(region, _GREY, 'ignored', dashed=True) for region in objects.ignored.tolist()),
        *(Box(box, colour, text) for box, colour, text in zip(objects.boxes.tolist(), own, texts)),
        *(Box(box, _WHITE, '', corners_alone=True) for box in objects.decoded.tolist())]
