"""What the soak says of a run: what grows is found, and a steady run is called so; a short run is one."""
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.soak import Sample, grown, measure, slope
from tests.support.fork_server import ROOT, environment

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


def test_what_is_held_is_seen(tmp_path: Path) -> None:
    """Of a process and its folder: memory, an open file, a thread, files of both kinds; a log is none of them."""
    before, end = measure(0, tmp_path), threading.Event()
    waiting = threading.Thread(target=end.wait)
    waiting.start()
    for name in ('epoch_1.pth', 'page.html', 'run.log'):
        (tmp_path / name).touch()
    with (tmp_path / 'run.log').open():
        held = np.ones(2**22)
        after = measure(0, tmp_path)
    end.set()
    waiting.join()
    assert 0.9 * held.nbytes < after.memory - before.memory < 1.5 * held.nbytes
    assert after.files == before.files + 1 and after.threads == before.threads + 1
    assert (after.checkpoints, after.others) == (1, 1)


def test_a_short_soak(tmp_path: Path) -> None:
    """Six epochs of ten steps, in which 2% of the memory is some 100 kB a step; what is counted is judged as ever."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'tests.chaos.soak', '--iters', '60', '--epoch', '10', '--work-dir',
         str(tmp_path), '--json', str(tmp_path / 'samples')], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**environment(), 'OMP_NUM_THREADS': '1'}, timeout=600)
    assert done.returncode == 0 and 'nothing grew' in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    samples = [Sample(**each) for each in json.loads((tmp_path / 'samples').read_text())]
    assert samples[-1].iteration == 60 and samples[-1].processes and samples[-1].checkpoints
