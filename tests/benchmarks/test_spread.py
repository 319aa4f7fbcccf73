"""Means over seeds, and what a missing figure does to them."""
import math

import pytest

from benchmarks.spread import mean_and_spread, spread_text


@pytest.mark.parametrize('values, text', [
    ([0.5, 0.7, 0.6], '0.600 ± 0.100'), ([0.25], '0.250'), ([0.0, 0.0], '0.000 ± 0.000'), ([1.0, math.inf], 'inf'),
    ([], '-'), ([0.5, None], '-'), ([0.5, -1.0], '-'), ([0.5, math.nan], '-')])
def test_spread_text(values, text):
    assert spread_text(iter(values), 3) == text


def test_one_value_has_no_deviation():
    mean, spread = mean_and_spread([0.25])
    assert mean == 0.25 and math.isnan(spread)
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
