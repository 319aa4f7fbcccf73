"""The start of a run: the config of each side, a process that fails, and rows of sides in turns."""
import os

import pytest
from mmengine.config import Config

from benchmarks import start_benchmark
from benchmarks.start_benchmark import PEER, ROOT, EndAfterFirstStep, run_once, start_rows
from mgdet_plugin.common.errors import UserError


def test_rows_are_medians_over_turns_of_sides_that_end_after_their_first_step(monkeypatch):
    """Seconds of the peer, the start and the start with the guard's baselines: 2, 3 and 7, and one more each turn."""
    order = []

    def ran(words, folder):
        side = 'peer' if words[0] == '-c' else os.path.basename(words[1]).removesuffix('.py')
        if side == 'peer':
            assert words[1].endswith(PEER.split('import ')[1].strip('"'))
        else:
            cfg = Config.fromfile(words[1])
            assert words[0] == str(ROOT / 'tools' / 'train.py') and os.path.isfile(cfg.load_from)
            assert cfg.custom_hooks == [dict(type='EndAfterFirstStep')]
            assert start_benchmark.__name__ in cfg.custom_imports.imports and len(cfg.custom_imports.imports) > 1
            assert (cfg.default_hooks.drift_guard is None) is (side == 'start')
        turn = order.count(side)
        order.append(side)
        seconds = dict(peer=2.0, start=3.0, start_measured=7.0)[side] + turn
        return seconds, seconds / 2

    monkeypatch.setattr(start_benchmark, 'run_once', ran)
    rows = {row['suite']: row for row in start_rows(repeats=3)}
    assert order == ['peer', 'start', 'start_measured'] * 4
    assert {suite: (row['ours_s'], row['peer_s']) for suite, row in rows.items()} == {
        'start_clock': (5.0, 4.0), 'start_processor': (2.5, 2.0),
        'start_measured_clock': (9.0, 4.0), 'start_measured_processor': (4.5, 2.0)}
    assert rows['start_clock']['ratio'] == 1.25


def test_a_process_is_measured_with_its_children(tmp_path):
    busy = 'import time\nwhile time.process_time() < 0.3: pass'
    words = ['-c', f'import subprocess, sys; subprocess.run([sys.executable, "-c", {busy!r}], check=True)']
    clock, processor = run_once(words, tmp_path)
    assert clock > 0.3 and processor > 0.3


def test_a_process_that_fails_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'^-c raise .* failed: ValueError: no start$'):
        run_once(['-c', 'raise ValueError("no start")'], tmp_path)


def test_the_first_step_ends_the_process_and_its_workers(monkeypatch):
    done = []

    class Worker:
        def terminate(self):
            done.append('worker')

    monkeypatch.setattr(start_benchmark, 'active_children', lambda: [Worker(), Worker()])
    monkeypatch.setattr(start_benchmark.os, '_exit', lambda code: done.append(code))
    EndAfterFirstStep().after_train_iter(None, 0)
    assert done == ['worker', 'worker', 0]
