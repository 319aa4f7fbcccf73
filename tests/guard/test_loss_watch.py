"""Smoothed losses and their signs, by numbers computed by hand."""
import json
import math

import pytest
import torch

from mgdet_plugin.guard.loss_watch import DIVERGENCE, DRIFT, SPIKE, LossBlock, LossWatch, Sign


def watch_of(*totals, window=2, names=('loss', 'loss_obj')):
    """A watch that took single iterations."""
    watch = LossWatch()
    for total in totals:
        watch.take(dict.fromkeys(names, total), 1, window)
    return watch


def signs(watch, divergence=2.0, limit=0.2, guarded=('loss_obj', )):
    return [(sign.kind, {name: pytest.approx(value) for name, value in sign.values.items()})
            for sign in watch.signs(divergence, limit, guarded)]


def test_a_block():
    block = LossBlock()
    block.add(dict(loss=4.0, loss_obj=1.0))
    block.add(dict(loss=8.0, loss_obj=2.0))
    block.add(dict(loss=3.0, loss_obj=6.0))
    assert block.count == 3
    assert block.over_processes(torch.device('cpu')) == (dict(loss=5.0, loss_obj=3.0), 8.0)


def test_smoothing():
    """Window 2, so half of the old is kept an iteration; the weight takes out that it began at nothing."""
    watch = watch_of(8.0)
    assert watch.smoothed() == dict(loss=8.0, loss_obj=8.0)
    watch.take(dict(loss=2.0, loss_obj=2.0), 1, 2)  # (8 / 4 + 2 / 2) / (1 / 4 + 1 / 2)
    assert watch.smoothed() == dict(loss=4.0, loss_obj=4.0)
    watch.take(dict(loss=16.0, loss_obj=0.0), 2, 2)  # a block of two: a quarter of the old; (3 / 4 + 12) / (15 / 16)
    assert watch.smoothed() == pytest.approx(dict(loss=13.6, loss_obj=0.8)) and watch.seen == 4
    assert LossWatch().smoothed() == {}


def test_the_reference_is_the_mean_of_the_first_window():
    watch = LossWatch()
    for count, loss in ((4, 10.0), (4, 4.0)):
        watch.take(dict(loss=loss), count, 10)
        assert watch.reference == {} and watch.lowest is None
    watch.take(dict(loss=1.0), 4, 10)  # the block that completes the window counts as a whole
    assert watch.reference == dict(loss=5.0) and watch.lowest == pytest.approx(watch.smoothed()['loss'])
    watch.take(dict(loss=100.0), 4, 10)
    assert watch.reference == dict(loss=5.0) and watch.lowest < watch.smoothed()['loss']


def test_a_spike_is_held_against_the_smoothed_total():
    assert watch_of(4.0).spike(1000.0, 5.0) is None  # no reference yet
    watch = watch_of(4.0, 4.0)
    assert watch.spike(20.0, 5.0) is None
    assert watch.spike(20.4, 5.0) == Sign(SPIKE, dict(loss=pytest.approx(5.1)))
    assert watch_of(0.0, 0.0).spike(1.0, 5.0) is None  # nothing to be a multiple of
    assert LossWatch().spike(1.0, 5.0) is None


def test_divergence_is_held_against_the_lowest_smoothed_total():
    watch = watch_of(4.0, 4.0, 1.0)  # smoothed (4 / 8 + 4 / 4 + 1 / 2) / (7 / 8)
    assert watch.lowest == pytest.approx(16 / 7) and signs(watch) == []
    watch.take(dict(loss=6.0, loss_obj=1.0), 1, 2)  # (1 + 3) / (15 / 16)
    assert watch.smoothed()['loss'] == pytest.approx(64 / 15) and signs(watch) == []  # 1.87 times
    watch.take(dict(loss=6.0, loss_obj=1.0), 1, 2)  # (2 + 3) / (31 / 32)
    assert signs(watch) == [(DIVERGENCE, dict(loss=160 / 31 / (16 / 7)))]
    assert signs(watch, divergence=3.0) == []


def test_drift_is_held_against_the_reference():
    watch = watch_of(4.0, 4.0)
    for name in ('loss_obj', 'loss_coord'):
        watch.reference[name] = 4.0
    watch.take(dict(loss=4.0, loss_obj=5.6, loss_coord=400.0), 1, 2)  # (3 / 2 + 2.8) / (7 / 8) = 4.914
    assert signs(watch) == [(DRIFT, dict(loss_obj=4.3 / 3.5))]
    assert signs(watch, limit=0.3) == [] and signs(watch, guarded=()) == []  # only what is guarded
    both = dict(signs(watch, limit=0.3, guarded=('loss_obj', 'loss_coord')))
    assert set(both) == {DRIFT} and set(both[DRIFT]) == {'loss_obj', 'loss_coord'}  # all ratios are told


def test_exactly_the_limit_is_in_the_band():
    watch = watch_of(4.0, 4.0)
    watch.reference['loss_obj'] = 2.0
    assert signs(watch, limit=1.0) == [] and [kind for kind, _ in signs(watch, limit=0.99)] == [DRIFT]


def test_accepted_a_sign_is_given_again_after_a_further_rise_only():
    watch = watch_of(4.0, 4.0, 40.0)
    assert [kind for kind, _ in signs(watch)] == [DIVERGENCE, DRIFT]
    watch.accept()
    now = watch.smoothed()['loss']
    assert watch.reference == dict(loss=now, loss_obj=now) and watch.lowest == now and signs(watch) == []
    watch.take(dict(loss=now, loss_obj=now), 1, 2)
    assert signs(watch) == []
    watch.take(dict(loss=6 * now, loss_obj=6 * now), 1, 2)
    assert [kind for kind, _ in signs(watch)] == [DIVERGENCE, DRIFT]


def test_accepting_never_lowers_a_reference():
    watch = watch_of(4.0, 4.0, 1.0)
    watch.accept()
    assert watch.reference == dict(loss=4.0, loss_obj=4.0) and watch.lowest == pytest.approx(16 / 7)


def test_forgetting_smooths_anew_against_the_same():
    watch = watch_of(4.0, 4.0, 40.0)
    watch.forget()
    assert watch.smoothed() == {} and watch.reference == dict(loss=4.0, loss_obj=4.0) and watch.lowest == 4.0
    assert watch.spike(1000.0, 5.0) is None  # there is nothing it could stand out from
    watch.take(dict(loss=4.0, loss_obj=4.0), 1, 2)
    assert watch.smoothed() == dict(loss=4.0, loss_obj=4.0) and signs(watch) == []


@pytest.mark.parametrize('totals', [(), (4.0, ), (4.0, 3.0, 5.0)])
def test_there_and_back(totals):
    """Through JSON, in the middle of anything: the next block gives the same."""
    watch = watch_of(*totals)
    plain = json.loads(json.dumps(dict(watch.to_plain(), later_field=1)))
    again = LossWatch.from_plain(plain)
    assert again == watch
    for each in (watch, again):
        each.take(dict(loss=7.0, loss_obj=1.0), 3, 2)
    assert again == watch and math.isfinite(watch.smoothed()['loss'])
