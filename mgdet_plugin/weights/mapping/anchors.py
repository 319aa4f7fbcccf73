"""Other anchors for imported weights: reading them, and what changing them costs.

Shapes: L scales, coarse first, A anchors a scale, S box sizes.
"""
from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.maths.overlaps import centred_overlap

Anchors = tuple[tuple[tuple[float, float], ...], ...]

SCALES = 3
STRIDES = (32, 16, 8)
MAX_TEXT_BYTES = 2 ** 16
MAX_SIZE = 10_000  # pixels
BOX_SIDES = range(8, 601, 8)  # pixels, for counting the sizes that change anchor
FORMS = ('a file or text of sizes "w,h, w,h, ..." in pixels, sorted by scale as for Darknet, or three lists of (w, h) '
         'with the coarse scale first')


def parse_anchors(given: str | Path) -> Anchors:
    """Read what ``--anchors`` takes.

    Args:
        given: Text, or the path of a text file, in one of two forms. Flat: numbers ``w,h, w,h, ...``; as listed, they
            are cut into three scales of equally many anchors, and the one of the largest mean area goes to stride 32.
            Darknet lists the finest scale first, so each scale must be larger than the one before it, or, listed the
            other way, smaller. Nested: a JSON or Python list of three lists of (w, h), coarse scale first, taken as
            it is.

    Returns:
        (width, height) in pixels of every anchor of every scale, coarse scale first.

    Raises:
        UserError: No such file, no such form, not three scales of equally many anchors, sizes that are no pixels, or
            scales that are out of order.
    """
    origin = f'--anchors {str(given)[:60]}'
    value = anchor_value(anchor_text(given), origin)
    nested = is_nested(value)
    scales = [flat_numbers(scale) for scale in value] if nested else cut_into_scales(flat_numbers(value), origin)
    check_scales(scales, origin)
    anchors = tuple(tuple((float(width), float(height)) for width, height in zip(scale[::2], scale[1::2], strict=True))
                    for scale in scales)
    if any(len(set(scale)) < len(scale) for scale in anchors):
        raise UserError(f'{origin}: a scale lists an anchor twice')
    areas = mean_areas(anchors)
    if not nested and areas == sorted(areas):
        anchors, areas = anchors[::-1], areas[::-1]
    if areas != sorted(areas, reverse=True) or len(set(areas)) < len(areas):
        raise UserError(f'{origin}: the scales have mean areas of {", ".join(f"{area:.0f}" for area in areas)} square '
                        f'pixels, which is no order of sizes; give {FORMS}')
    return anchors


def anchor_text(given: str | Path) -> str:
    """The text given, or that of the file it is the path of, without comments and outer commas."""
    try:
        path = Path(given)
        if path.is_file():
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise UserError(f'--anchors {path}: larger than {MAX_TEXT_BYTES:,} bytes, no list of anchors')
            given = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise UserError(f'--anchors {given}: cannot be read as text: {error}') from error
    except OSError:  # a text too long for a path
        pass
    return re.sub(r'#.*', '', str(given)).strip().strip(',').strip()


def anchor_value(text: str, origin: str) -> Sequence[Any]:
    """What a text holds: a list as JSON or Python writes it, or numbers; Darknet's ``anchors =`` may stand before."""
    text = re.sub(r'^anchors\s*=\s*', '', text)
    try:
        if text.startswith(('[', '(')):
            return list(ast.literal_eval(text))
        return [float(word) for word in re.split(r'[\s,]+', text)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(f'{origin}: neither a file nor anchors; give {FORMS}') from error


def is_nested(value: Sequence[Any]) -> bool:
    """Whether a value is a list of lists of pairs."""
    return bool(value) and all(
        isinstance(scale, (list, tuple)) and scale and all(isinstance(pair, (list, tuple)) and len(pair) == 2
                                                           for pair in scale) for scale in value)


def flat_numbers(value: Sequence[Any]) -> list[Any]:
    """The numbers of a list of numbers or of pairs, in order."""
    return [number for entry in value for number in (entry if isinstance(entry, (list, tuple)) else (entry,))]


def cut_into_scales(numbers: list[Any], origin: str) -> list[list[Any]]:
    """Equal parts of a flat list of widths and heights."""
    if not numbers or len(numbers) % (2 * SCALES):
        raise UserError(f'{origin}: {len(numbers)} numbers are not the widths and heights of equally many anchors for '
                        f'each of {SCALES} scales; give {FORMS}')
    step = len(numbers) // SCALES
    return [numbers[start:start + step] for start in range(0, len(numbers), step)]


def check_scales(scales: Sequence[Sequence[Any]], origin: str) -> None:
    """Refuse what is not three scales of equally many widths and heights in pixels."""
    if len(scales) != SCALES or len({len(scale) for scale in scales}) > 1:
        raise UserError(f'{origin}: {SCALES} scales of equally many anchors are needed, got '
                        f'{[len(scale) // 2 for scale in scales]}; give {FORMS}')
    for number in flat_numbers(scales):
        usable = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        if not usable or not 0 < number <= MAX_SIZE:
            raise UserError(f'{origin}: {str(number)[:40]!r} is no width or height above 0 and up to {MAX_SIZE:,} '
                            'pixels')
    if max(flat_numbers(scales)) <= 1:
        raise UserError(f'{origin}: all sizes are at most 1; give them in pixels of the input, not as fractions')


def mean_areas(anchors: Anchors) -> list[float]:
    """Mean area of the anchors of every scale in square pixels."""
    return [sum(width * height for width, height in scale) / len(scale) for scale in anchors]


def describe_anchor_change(old: Sequence[Sequence[Sequence[float]]], new: Anchors) -> list[str]:
    """What it costs to give weights other anchors than they were trained with, one line each.

    Args:
        old: Anchors the weights were trained with, coarse scale first.
        new: Those to use.

    Returns:
        Lines for a person; none where nothing changes.

    Raises:
        UserError: The number of anchors of a scale differs, so that the anchor rows of the weights would not fit.
    """
    counts = [len(scale) for scale in old], [len(scale) for scale in new]
    if counts[0] != counts[1]:
        raise UserError(f'--anchors: {counts[1]} anchors a scale, the weights have rows for {counts[0]}; give as many')
    changes = [(stride, *one, *other) for stride, was, now in zip(STRIDES, old, new, strict=True)
               for one, other in zip(was, now, strict=True) if tuple(one) != tuple(other)]
    if not changes:
        return []
    listed = '; '.join(f'stride {stride}: {w:g}x{h:g} -> {wide:g}x{high:g} (width x {wide / w:.3g}, height x '
                       f'{high / h:.3g})' for stride, w, h, wide, high in changes)
    before, after = best_anchors(old), best_anchors(new)
    moved = float((before != after).float().mean())
    other_scale = float((before // counts[0][0] != after // counts[0][0]).float().mean())
    return [
        f'{len(changes)} of {sum(counts[0])} anchors change: {listed}',
        'boxes predicted with a changed anchor scale by these factors at once: their size is anchor * exp(t)',
        f'of all box sizes from {BOX_SIDES[0]} to {BOX_SIDES[-1]} pixels a side {moved:.1%} have another best anchor, '
        f'{other_scale:.1%} on another scale: their boxes, anchor logits and objectness must be learnt again',
        stage_one_line(old, new, other_scale > 0),
    ]


def stage_one_line(old: Sequence[Sequence[Sequence[float]]], new: Anchors, other_scale: bool) -> str:
    """What training the prediction convolutions alone can undo."""
    same_factor = all(
        math.isclose(after[side] / before[side], now[0][side] / was[0][side], rel_tol=1e-6)
        for was, now in zip(old, new, strict=True) for before, after in zip(was, now, strict=True) for side in (0, 1))
    if same_factor:
        box = 'its biases of tw and th can undo the change of box sizes, which is one factor a scale'
    else:
        box = 'tw and th serve all anchors of a cell, so it cannot undo factors that differ within a scale exactly'
    scales = '; sizes that change scale meet layers that stay trained for others' if other_scale else ''
    return (f'stage 1 trains the prediction convolutions alone: {box}{scales}; keep the anchors the weights were '
            'trained with unless your objects have very different sizes')


def best_anchors(anchors: Sequence[Sequence[Sequence[float]]]) -> Tensor:
    """The anchor of highest IoL for every size of a grid of :data:`BOX_SIDES`, the first on ties, as when training.

    Args:
        anchors: (width, height) in pixels, coarse scale first.

    Returns:
        (S,) index among the L * A anchors.
    """
    sides = torch.tensor(BOX_SIDES, dtype=torch.float32)
    sizes = torch.cartesian_prod(sides, sides)  # (S, 2)
    candidates = torch.tensor(anchors, dtype=torch.float32).flatten(0, 1)  # (L * A, 2)
    return centred_overlap(sizes[:, None], candidates[None]).argmax(1)
