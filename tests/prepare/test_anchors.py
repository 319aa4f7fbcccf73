"""Anchors for a config: what they bring, what they cost the weights, and what is written."""
from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.prepare.anchors import PLOT, RECORD, choose_anchors, cost, write_choice
from mgdet_plugin.prepare.faults.input_fit import NetworkInput
from tests.support.small_run import make_dataset, write_config

TWO = [[(40., 40.)], [(10., 10.)]]


def two_levels(anchors: list) -> NetworkInput:
    """A network of two levels with an anchor each."""
    return NetworkInput((64, 64), True, anchors, (16, 8))


def test_cost_is_that_of_the_boxes_that_move() -> None:
    sizes = torch.tensor([[40., 40.], [10., 10.], [20., 20.], [12., 12.]])
    old = two_levels(TWO)
    assert cost(sizes, old, old) == ((0.0, 0.0), 1.0)
    # 20x20 covers 1/4 of either; the first anchor wins until the second grows
    shares, stretch = cost(sizes, old, two_levels([[(40., 40.)], [(20., 20.)]]))
    assert shares == (0.25, 0.25) and stretch == pytest.approx(2.0)


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small config with data of its own."""
    folder = tmp_path_factory.mktemp('anchors')
    return write_config(folder / 'my.py', make_dataset(folder / 'data'))


def test_anchors_of_a_config(config: Path, tmp_path: Path) -> None:
    choice = choose_anchors(config, generations=50)
    assert choice.overlaps['evolution'] > choice.overlaps['config'] > 0
    assert len(choice.sizes) == 16  # all but the one of zero area
    assert [len(level) for level in choice.anchors] == [3, 3, 3]
    assert choice.anchors == choose_anchors(config, generations=50).anchors
    line = choice.lines()[-1].removeprefix('model = dict(bbox_head=dict(anchors=').removesuffix('))')
    assert ast.literal_eval(line) == choice.anchors
    said = '\n'.join(choice.lines())
    assert '% to another level' in said and 'learnt their width and height rows for the old anchors' in said
    paths = write_choice(choice, tmp_path / 'out')
    assert [path.name for path in paths] == [RECORD, PLOT] and paths[1].read_bytes()[:4] == b'\x89PNG'
    assert json.loads(paths[0].read_text())['new'] == [[list(size) for size in level] for level in choice.anchors]


def test_anchors_that_fit_are_kept(config: Path) -> None:
    found = choose_anchors(config, generations=50)
    kept = choose_anchors(config, generations=0, options={
        'model.bbox_head.anchors': [[list(size) for size in level] for level in found.anchors]})
    assert kept.overlaps['evolution'] >= kept.overlaps['config'] == pytest.approx(found.overlaps['evolution'])
    assert kept.anchors != found.anchors or 'keep them' in kept.lines()[-1]


def test_losses_of_weights_with_both(config: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / 'a.pth')
    choice = choose_anchors(config, generations=20, measure=str(tmp_path / 'a.pth'))
    assert choice.losses['before'].keys() == choice.losses['after'].keys() >= {'loss', 'loss_coord'}
    assert choice.losses['before']['loss'] != choice.losses['after']['loss']
    assert any('validation losses of the weights: loss' in line for line in choice.lines())


@pytest.mark.parametrize(('options', 'line'), [
    (dict(metric='giou'), 'overlap must be one of'),
    (dict(generations=-1), 'generations must be a whole number, got -1'),
    (dict(seed=1.5), 'the seed must be a whole number, got 1.5'), (dict(measure='no.pth'), 'no.pth are not there')])
def test_bad_options_are_refused(config: Path, options: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        choose_anchors(config, **options)
