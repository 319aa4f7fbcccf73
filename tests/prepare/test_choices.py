"""What is chosen follows from the number of pictures, their sizes and those of their objects."""
from __future__ import annotations

from pathlib import Path

import pytest

from mgdet_plugin.datasets.sources.annotated import Box, Picture
from mgdet_plugin.prepare.choices import batch_size, choose, input_size, stage_epochs


def shown(size: tuple[int, int], side: float, count: int = 10) -> list[Picture]:
    return [Picture(Path('a.png'), (Box('ant', (0, 0, side, side)), ), size=size)] * count


@pytest.mark.parametrize(('size', 'side', 'scenario', 'network', 'chosen'), [
    ((640, 480), 100, 'full', 'model5', 608),   # the size of the weights
    ((640, 480), 100, 'full', 'nano', 192),
    ((300, 400), 100, 'full', 'model5', 416),   # no larger than the pictures
    ((100, 50), 20, 'full', 'model5', 288),     # but half of the weights' at the least
    ((640, 480), 20, 'full', 'nano', 256),      # 20 pixels of 640 are 8 of 256
    ((640, 480), 1, 'full', 'nano', 384),       # at most twice the weights'
    ((640, 480), 100, 'nothing', 'nano', 320)])
def test_input_sizes(size, side, scenario, network, chosen):
    choice = input_size(shown(size, side), scenario, network)
    assert choice.value == chosen and choice.value % 32 == 0
    assert '%' in choice.why or 'no side above' in choice.why


@pytest.mark.parametrize(('images', 'batch'), [(1, 2), (30, 2), (100, 4), (140, 4), (319, 8), (320, 16), (10 ** 5, 16)])
def test_batches_leave_an_epoch_some_steps(images, batch):
    assert batch_size(images, 'model5').value == batch


@pytest.mark.parametrize(('steps', 'scenario', 'network', 'epochs'), [
    (35, 'full', 'model5', (9, 9, 90)),        # few steps an epoch: short stages are prolonged
    (5, 'full', 'model5', (20, 20, 90)),
    (100, 'full', 'model5', (5, 5, 90)),       # the guide's
    (1000, 'full', 'model5', (5, 5, 20)),      # a long stage of very many steps is shortened
    (35, 'keep', 'nano', (29, )), (35, 'keep', 'model5', (9, 9, 90)),
    (35, 'backbone', 'model5', (18, 90)), (26, 'nothing', 'nano', (116, ))])
def test_stage_lengths(steps, scenario, network, epochs):
    assert tuple(each.value for each in stage_epochs(steps, scenario, network)) == epochs


def test_choices_go_by_pictures_with_objects_and_validations_fit_the_shortest_stage():
    pictures = shown((640, 480), 100, 40) + [Picture(Path('b.png'), (), size=(64, 64))] * 400
    choices = choose(pictures, 'full', 'model5')
    assert choices.batch.value == 2 and '20 steps' in choices.batch.why and choices.size.value == 608
    assert choices.interval.value == 5 <= min(each.value for each in choices.epochs)
