"""What the soak says of a run: what grows is found, and a steady run is called so."""
from dataclasses import replace

import pytest

from tests.chaos.soak import Sample, grown, slope

STEADY = [Sample(each, 10**8 + each % 3 * 10**5, 10**8, 40, 6, 2, 5, 3) for each in range(25, 1025, 25)]


def test_a_steady_run_is_called_so() -> None:
    assert grown(STEADY) == []
    line = slope(STEADY, 'memory')
    assert abs(line.each) < 3 * line.error and line.mean == pytest.approx(10**8 + 10**5, rel=1e-3)


@pytest.mark.parametrize(('name', 'each', 'said'), [
    ('memory', 4000, 'memory grows by 39'), ('loaders', 4000, 'loaders grows by 4000'), ('files', 0.01, 'files grew'),
    ('threads', 0.01, 'threads grew'), ('processes', 0.01, 'processes grew'), ('checkpoints', 0.01, 'checkpoints grew'),
    ('others', 0.01, 'others grew')])
def test_growth_is_found(name: str, each: float, said: str) -> None:
    leaking = [replace(sample, **{name: int(getattr(sample, name) + each * sample.iteration)}) for sample in STEADY]
    line, = grown(leaking)
    assert line.startswith(said)
