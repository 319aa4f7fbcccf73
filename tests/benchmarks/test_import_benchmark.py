"""Seconds and memory of some work, its child processes counted."""
from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.import_benchmark import measure, run_side
from mgdet_plugin.common.errors import UserError

MEGABYTE = 2 ** 20


def test_counts_memory_that_was_given_back():
    def work() -> None:
        np.ones(40 * MEGABYTE // 8)
        time.sleep(0.05)

    measured = measure(work)
    assert 35 * MEGABYTE < measured['memory'] < 80 * MEGABYTE and 0.05 < measured['seconds'] < 5


def test_counts_children():
    code = f'import time; held = bytearray(b"x" * {60 * MEGABYTE}); time.sleep(0.3)'
    assert measure(lambda: subprocess.run([sys.executable, '-c', code], check=True))['memory'] > 60 * MEGABYTE


def test_counts_the_processor_of_children_and_not_of_waiting():
    code = 'import time\nwhile time.process_time() < 0.5: pass'
    assert measure(lambda: subprocess.run([sys.executable, '-c', code], check=True))['processor'] >= 0.5
    waited = measure(lambda: time.sleep(0.5))
    assert waited['processor'] < 0.4 < waited['seconds']


def test_a_side_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r'the ours side of the import benchmark failed: .*absent\.h5'):
        run_side('ours', tmp_path / 'absent.h5')
