"""The rate of every group at every iteration of both scenarios, from a run's log, against rates worked out by hand.

``tests/data/rates_by_hand.csv`` holds rates of chosen iterations with the arithmetic beside them. Between them a
closed form holds, written here from the recipe; nothing of the engine's arithmetic is used.
"""
from math import cos, pi

import pytest

from tests.support.rates_run import CONFIGS, GROUPS, TABLE, logged_rates, points_by_hand, stages_of
from tests.support.small_run import make_dataset

ITERATIONS = 200  # 100 epochs of two
EXACT = 1e-9  # the table has ten digits, the log all of them
BACKBONE_SHARE = 0.1
WITH_SHARE = [dict(name='head', epochs=2, freeze_level=1, lr=1e-4),
              dict(name='all', epochs=6, freeze_level=0, lr=5e-5, warmup_epochs=1, boost=2.0, boost_epochs=2,
                   lr_mult=dict(backbone=BACKBONE_SHARE)),
              dict(name='alike', epochs=2, freeze_level=0, lr=3e-5)]


def warmed(done, length, peak):
    """Linear from a hundredth of the peak."""
    return peak / 100 + (peak - peak / 100) * done / length


def cosine(done, length, begin):
    """From ``begin`` to 1e-7."""
    return 1e-7 + (begin - 1e-7) * (1 + cos(pi * done / length)) / 2


def usual(done, length, rate):
    """A stage of ``length`` iterations: 3 epochs of warmup, then the cosine."""
    return warmed(done, 6, rate) if done < 6 else cosine(done - 6, length - 6, rate)


def full_weights(iteration):
    """5 epochs at 1e-4, 5 at 5e-5, 90 at 3e-5."""
    if iteration < 10:
        return dict(backbone=0, neck=0, bbox_head=usual(iteration, 10, 1e-4))
    if iteration < 20:
        rate = usual(iteration - 10, 10, 5e-5)
        return dict(backbone=0, neck=rate, bbox_head=rate)
    return dict.fromkeys(GROUPS, usual(iteration - 20, 180, 3e-5))


def backbone_weights(iteration):
    """10 epochs at 1e-4; then an epoch of warmup, two at 2e-4 and 87 of cosine from 1e-4."""
    if iteration < 20:
        rate = usual(iteration, 20, 1e-4)
        return dict(backbone=0, neck=rate, bbox_head=rate)
    done = iteration - 20
    if done < 2:
        return dict.fromkeys(GROUPS, warmed(done, 2, 2e-4))
    return dict.fromkeys(GROUPS, 2e-4 if done < 6 else cosine(done - 6, 174, 1e-4))


RECIPES = dict(full=full_weights, backbone=backbone_weights)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


@pytest.fixture(scope='module', params=CONFIGS)
def logged(request, tmp_path_factory, data):
    """A scenario and the rates its run logged."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, logged_rates(folder, data, stages_of(request.param), request.param)


def close(rates):
    return pytest.approx(rates, rel=EXACT, abs=0)


def test_every_iteration_is_as_in_the_recipe(logged):
    scenario, rates = logged
    assert len(rates) == ITERATIONS
    for iteration, seen in enumerate(rates):
        assert seen == close(RECIPES[scenario](iteration)), f'{scenario}, iteration {iteration}'


def test_every_row_of_the_table_is_in_the_log(logged):
    scenario, rates = logged
    points = points_by_hand(scenario)
    assert {point.stage for point in points} == {stage['name'] for stage in stages_of(scenario)}
    for point in points:
        assert rates[point.iteration] == close(point.rates), f'{TABLE.name}: {scenario}, iteration {point.iteration}'


def test_the_share_of_a_group_holds_at_every_iteration(tmp_path, data):
    """A tenth for the backbone in one stage, through warmup, boost and cosine to its end; all alike in the next."""
    rates = logged_rates(tmp_path, data, WITH_SHARE, 'full')
    assert len(rates) == 20
    assert all(seen['backbone'] == 0 < seen['neck'] == seen['bbox_head'] for seen in rates[:4])
    for iteration, seen in enumerate(rates[4:16]):
        rate = warmed(iteration, 2, 1e-4) if iteration < 2 else 1e-4
        if iteration >= 6:
            rate = cosine(iteration - 6, 6, 5e-5)
        assert seen == close(dict(backbone=rate * BACKBONE_SHARE, neck=rate, bbox_head=rate)), iteration
    assert all(seen['backbone'] == seen['neck'] == seen['bbox_head'] > 0 for seen in rates[16:])
