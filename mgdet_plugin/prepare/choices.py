"""Input size, batch and lengths of a run, chosen by the pictures and the scenario, each with its reason."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mgdet_plugin.datasets.sources.annotated import Picture

Scenario = Literal['full', 'keep', 'backbone', 'nothing']
Network = Literal['model5', 'nano']

STRIDE, FINEST = 32, 8  # pixels of the coarsest and the finest map
TRAINED_AT = dict(model5=608, nano=192)  # pixels; the input size of each network's recipe
SCRATCH_SIZE = 320  # pixels; of the small model from nothing (configs/scratch)
_SMALL_SHARE = 0.25  # of the boxes, that may be smaller than a cell of the finest map
_STEPS_AN_EPOCH = 20  # at least, where the pictures allow it
_LARGEST_BATCH = dict(model5=16, nano=16)


@dataclass(frozen=True)
class Choice:
    """A value and why it is that."""

    value: int
    why: str


@dataclass(frozen=True)
class Choices:
    """What a config states beside its data.

    Attributes:
        size: sides of the square input in pixels.
        batch: images a step.
        epochs: of each stage, in order; of the whole run where there are no stages.
        interval: epochs from one validation to the next.
    """

    size: Choice
    batch: Choice
    epochs: tuple[Choice, ...]
    interval: Choice


def choose(pictures: Sequence[Picture], scenario: Scenario, network: Network) -> Choices:
    """Choose for the pictures of a train set, by those of them that show an object."""
    shown = [each for each in pictures if each.boxes]
    batch = batch_size(len(shown), network)
    steps = max(1, math.ceil(len(shown) / batch.value))
    epochs = stage_epochs(steps, scenario, network)
    interval = max(1, min(math.ceil(100 / steps), min(each.value for each in epochs)))
    said = (f'epochs between validations, about {interval * steps:,} steps' if interval > 1 else
            'each epoch is validated')
    return Choices(input_size(shown, scenario, network), batch, epochs, Choice(interval, said))


def input_size(pictures: Sequence[Picture], scenario: Scenario, network: Network) -> Choice:
    """The size the weights were trained at; less where pictures are smaller, more where boxes would be too small."""
    usual = SCRATCH_SIZE if scenario == 'nothing' else TRAINED_AT[network]
    longest = sorted(max(each.size or (0, 0)) for each in pictures)
    common = _rounded_up(longest[int(0.9 * (len(longest) - 1))])  # nine of ten pictures are no longer
    what = 'the recipe' if scenario == 'nothing' else 'the weights'
    if common < usual:
        size = max(common, usual // 2 // STRIDE * STRIDE)
        return Choice(size, f'{usual} is the size of {what}; nine of ten pictures have no side above {common}')
    sides = [(math.sqrt(box.bbox[2] * box.bbox[3]) / max(each.size or (1, 1))) for each in pictures
             for box in each.boxes if not box.ignore]
    size = usual
    while _small(sides, size) > _SMALL_SHARE and size + STRIDE <= min(common, 2 * usual):
        size += STRIDE
    small = f'{_small(sides, size):.0%} of the boxes are smaller than {FINEST} pixels there, a cell of the finest map'
    if size == usual:
        return Choice(size, f'the size of {what}; {small}')
    return Choice(size, f'{usual} is the size of {what}, at which {_small(sides, usual):.0%} of the boxes are smaller '
                  f'than {FINEST} pixels, a cell of the finest map; here it is {_small(sides, size):.0%}')


def batch_size(images: int, network: Network) -> Choice:
    """A power of two that leaves an epoch some steps."""
    most = _LARGEST_BATCH[network]
    value = max(2, min(most, 2 ** int(math.log2(max(2, images // _STEPS_AN_EPOCH)))))
    if value < most:
        return Choice(value, f'{math.ceil(images / value):,} steps an epoch of the {images:,} images with objects')
    return Choice(value, "a third of the guide's 48, which fill one 80 GB card at 608 pixels; more if yours has room")


def stage_epochs(steps: int, scenario: Scenario, network: Network) -> tuple[Choice, ...]:
    """Epochs of each stage for a number of steps an epoch.

    The guide's lengths are those of a large set; few images make few steps an epoch, so short stages are prolonged to
    some steps, and the long one is shortened where it would be very many.
    """
    def at_least(guide: int, wanted: int, most: int) -> Choice:
        value = min(most, max(guide, math.ceil(wanted / steps)))
        return Choice(value, f'the usual {guide} epochs, {value * steps:,} steps' if value == guide else
                      f'{value * steps:,} steps; the usual {guide} epochs would be {guide * steps:,}')

    full = min(90, max(20, math.ceil(20_000 / steps)))
    rest = Choice(full, f'the usual 90 epochs, {full * steps:,} steps; ends early after ten validations without gain'
                  if full == 90 else f'{full * steps:,} steps; the usual 90 epochs would be {90 * steps:,}')
    if scenario == 'nothing':
        return (at_least(40, 3_000, 300), )
    if scenario == 'backbone':
        return at_least(10, 600, 30), rest
    if scenario == 'keep' and network == 'nano':
        return (at_least(20, 1_000, 90), )
    return at_least(5, 300, 20), at_least(5, 300, 20), rest


def _small(sides: Sequence[float], size: int) -> float:
    """Share of boxes whose side (of a square of their area) is below the finest cell's at an input size."""
    return sum(side * size < FINEST for side in sides) / max(1, len(sides))


def _rounded_up(pixels: float) -> int:
    return STRIDE * math.ceil(pixels / STRIDE)
