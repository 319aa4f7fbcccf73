"""Every kind of error is found where it is planted, and its cost is what mending it by hand gains."""
import numpy as np
import pytest

from mgdet_plugin.runs.analysis.analysis import analyse
from mgdet_plugin.runs.analysis.average_precision import precision_at_recalls
from mgdet_plugin.runs.analysis.error_kinds import KINDS, RIGHT, SKIPPED
from mgdet_plugin.runs.analysis.matching import sorted_result
from tests.support.detections import drawn_samples, results_of

CLASSES = ('cat', 'dog')
SIDE = 100


def picture(*found, crowd=False):
    """A picture with a cat at x = 0 and a dog at x = 500, and what is ``found``: (x, class, score)."""
    truth = [[0, 0, SIDE, SIDE], [500, 0, SIDE, SIDE]]
    return sorted_result(0, '', truth, [0, 1], [crowd, False], [SIDE ** 2] * 2,
                         [[x, 0, SIDE, SIDE] for x, _, _ in found], [score for *_, score in found],
                         [label for _, label, _ in found])


RIGHT_BOTH = [(0, 0, 0.9), (500, 1, 0.9)]
PLANTED = dict(
    **{'class': [(0, 1, 0.95), (500, 1, 0.9)]},
    box=[(60, 0, 0.95), (500, 1, 0.9)],
    both=[*RIGHT_BOTH, (60, 1, 0.95)],
    duplicate=[*RIGHT_BOTH, (510, 1, 0.8)],
    background=[*RIGHT_BOTH, (300, 1, 0.95)],
    missed=[(500, 1, 0.9)])


@pytest.mark.parametrize('kind', KINDS)
def test_a_planted_error_is_found_and_is_the_only_one(kind):
    errors = analyse([picture(*PLANTED[kind])], CLASSES).errors
    others = [each for each in errors.kind if each != RIGHT]
    assert others == ([kind] if kind != 'missed' else []) and len(errors.missed) == (kind == 'missed')
    gains = {name for name, gain in errors.gained.items() if gain > 1e-9}
    assert gains == ({kind} if kind != 'duplicate' else set())  # behind all objects a mistake costs no AP
    assert errors.average + errors.gained[kind] == pytest.approx(1)
    assert analyse([picture(*RIGHT_BOTH)], CLASSES).errors.average == 1


def test_a_duplicate_costs_where_it_comes_before_another_object():
    """Right, a duplicate, right: precision 2/3 from a recall of 1/2 on; 1 without it."""
    pictures = [picture((0, 0, 0.9), (500, 1, 0.9), (5, 0, 0.8)), picture((0, 0, 0.7), (500, 1, 0.9))]
    errors = analyse(pictures, CLASSES).errors
    lost = 50 / 101 / 3 / 2
    assert errors.average == pytest.approx(1 - lost) and errors.gained == pytest.approx(
        dict.fromkeys(KINDS, 0) | dict(duplicate=lost))


def test_of_two_that_would_find_one_object_the_better_score_stays():
    """A cat found with 0.6; a box beside it with 0.8, whose mending takes the other's place; so for a wrong class."""
    for wrong in ((60, 0, 0.8), (0, 1, 0.8)):
        errors = analyse([picture((0, 0, 0.6), (500, 1, 0.9), wrong)], CLASSES).errors
        kind = 'box' if wrong[0] else 'class'
        assert sorted(errors.kind) == sorted([kind, RIGHT, RIGHT])
        assert errors.average + errors.gained[kind] == pytest.approx(1)
    twice = analyse([picture((60, 0, 0.8), (61, 0, 0.7), (500, 1, 0.9))], CLASSES).errors
    assert twice.average == 0.5 and twice.gained['box'] == pytest.approx(0.5)


def test_where_several_kinds_fit():
    """Half on a dog's place and a tenth on a cat's: it is a dog called a cat; on its own class it is a duplicate."""
    truth = [[0, 0, SIDE, SIDE], [70, 0, SIDE, SIDE]]

    def kinds(*found):
        result = sorted_result(0, '', truth, [0, 1], [0, 0], [SIDE ** 2] * 2, [[x, 0, SIDE, SIDE] for x, *_ in found],
                               [score for *_, score in found], [label for _, label, _ in found])
        return list(analyse([result], CLASSES).errors.kind)

    assert kinds((70, 0, 0.9)) == ['class']
    assert kinds((0, 0, 0.9), (30, 0, 0.8)) == [RIGHT, 'duplicate']
    assert kinds((-60, 0, 0.9)) == ['box'] and kinds((-60, 1, 0.9)) == ['both']
    assert kinds((-95, 1, 0.9)) == ['background']


def test_an_object_with_a_wrong_class_or_box_is_not_missed_too():
    for wrong in ((0, 1, 0.5), (60, 0, 0.5)):
        assert not len(analyse([picture(wrong, (500, 1, 0.9))], CLASSES).errors.missed)
    assert len(analyse([picture((60, 1, 0.5), (500, 1, 0.9))], CLASSES).errors.missed) == 1  # both are wrong


def test_crowds_are_no_objects():
    errors = analyse([picture((0, 0, 0.9), (0, 1, 0.8), (500, 1, 0.9), crowd=True)], CLASSES).errors
    assert sorted(errors.kind) == sorted([SKIPPED, 'background', RIGHT]) and not len(errors.missed)


def test_a_class_of_which_all_is_missed():
    """No longer asked for, a class without detections is perfect, and one with mistakes alone is worth nothing."""
    assert analyse([picture((500, 1, 0.9))], CLASSES).errors.gained['missed'] == pytest.approx(0.5)
    assert analyse([picture((300, 0, 0.8), (500, 1, 0.9))], CLASSES).errors.gained['missed'] == 0


def test_the_average_is_ap_at_half_and_removing_all_that_is_wrong_gains_what_it_must():
    results = results_of(drawn_samples(40, 4, seed=7))
    found = analyse(results, list('abcd'))
    assert found.errors.average == pytest.approx(np.nanmean(found.curves.average[0]), abs=1e-12)
    assert all(gain >= -1e-12 for gain in found.errors.gained.values())
    assert {*found.errors.kind} == {*KINDS, RIGHT, SKIPPED} - {'missed'} and len(found.errors.missed)
    right = found.errors.kind == RIGHT
    for label in range(3):  # without background errors, each class by itself
        kept = (found.matched.labels == label) & (found.errors.kind != 'background') & (found.errors.kind != SKIPPED)
        order = np.argsort(-found.matched.scores[kept], kind='stable')
        of_class = precision_at_recalls(right[kept][order], found.matched.positives[label]).mean()
        assert of_class >= found.curves.average[0, label] - 1e-12


def test_counts_at_the_threshold():
    found = analyse([picture((0, 0, 0.9), (500, 1, 0.3), (300, 1, 0.1))], CLASSES)
    assert found.threshold == 0.3 and found.counts() == {**dict.fromkeys(KINDS, 0), RIGHT: 2}
    nothing = analyse([picture((300, 0, 0.8), (310, 0, 0.2))], CLASSES)
    assert nothing.threshold == 0.3 and nothing.counts()['background'] == 1 and nothing.counts()['missed'] == 2
    empty = analyse([picture()], CLASSES)
    assert empty.mean_ap == 0 and empty.counts()['missed'] == 2 and np.isnan(empty.calibration.error)
    assert np.isnan(analyse([], CLASSES).mean_ap)
