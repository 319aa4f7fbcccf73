"""AP of every class, overlap and size, held against pycocotools; F1 by hand."""
import numpy as np
import pytest

from mgdet_plugin.runs.analysis.analysis import OVERLAPS, SIZES, analyse
from mgdet_plugin.runs.analysis.average_precision import confidence, precision_at_recalls, precision_curves
from mgdet_plugin.runs.analysis.matching import match_all
from tests.support.detections import coco_evaluation, drawn_samples, results_of


@pytest.mark.parametrize(('seed', 'per_image'), [(0, 12), (1, 25), (2, 260)])
def test_every_figure_is_that_of_pycocotools(seed, per_image, tmp_path):
    """Crowds, equal scores, more than 100 detections of a class, empty pictures, a class without objects."""
    samples = drawn_samples(30 if per_image < 100 else 8, 5, seed, per_image)
    coco = coco_evaluation(samples, 5, tmp_path, maxDets=[1, 10, 100]).eval
    results = results_of(samples)
    for index, area in enumerate([(0, 1e10), *SIZES.values()]):
        ours = precision_curves(match_all(results, 5, OVERLAPS, area))
        for name in ('precision', 'recall'):
            known = np.where(coco[name] < 0, np.nan, coco[name])[..., index, -1]
            assert np.isnan(known[..., 4]).all() and np.nanmax(known) > 0.3
            np.testing.assert_allclose(getattr(ours, name), known, rtol=0, atol=1e-9)


def test_the_sums_are_those_of_pycocotools(tmp_path):
    samples = drawn_samples(40, 4, seed=5)
    stats = coco_evaluation(samples, 4, tmp_path).stats
    found = analyse(results_of(samples), list('abcd'))
    average = found.curves.average
    ours = [average, average[0], average[5], *found.sizes.values()]
    assert [np.nanmean(each) for each in ours] == pytest.approx(stats[:6], abs=1e-9)
    assert found.mean_ap == pytest.approx(stats[0], abs=1e-9) and stats[0] > 0.1
    assert np.nanmean(found.curves.recall) == pytest.approx(stats[8], abs=1e-9)


def test_precision_by_hand():
    """Right, wrong, right of four objects: precision 1 up to a recall of 1/4, 2/3 up to 1/2, then nothing."""
    curve = precision_at_recalls(np.array([True, False, True]), 4)
    assert curve[:26] == pytest.approx(1) and curve[26:51] == pytest.approx(2 / 3) and not curve[51:].any()
    assert not precision_at_recalls(np.zeros(0, bool), 3).any()


def test_f1_by_hand():
    """Of four objects three are found: at 0.9, at 0.6 beside a mistake of the same score, at 0.2 after another."""
    scores = np.array([0.2, 0.9, 0.6, 0.3, 0.6])
    found = confidence(scores, np.array([True, True, True, False, False]), 4)
    precision, recall = [1, 2 / 3, 2 / 4, 3 / 5], [1 / 4, 2 / 4, 2 / 4, 3 / 4]
    at = [90, 60, 30, 20]  # hundredths
    assert found.precision[at] == pytest.approx(precision) and found.recall[at] == pytest.approx(recall)
    assert found.threshold == 0.2 and found.best == pytest.approx((3 / 5, 3 / 4, 2 / 3))
    assert found.f1[0] == pytest.approx(2 / 3) and np.isnan(found.precision[100]) and found.f1[100] == 0
    assert np.isnan(confidence(scores, np.zeros(5, bool), 4).threshold)
    assert np.isnan(confidence(np.zeros(0), np.zeros(0, bool), 0).threshold)
