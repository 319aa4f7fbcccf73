"""Runs side by side: resumed where a benchmark was cut off, and stopped by the first that fails."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks import trials
from benchmarks.benchmark import LearningOptions
from benchmarks.trials import Trial, run_trials, validations
from mgdet_plugin.common.errors import UserError
from tests.conftest import ROOT
from tests.support.run_folder import write_run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'mini.py'
    path.write_text('rate = 1.0\nloader = dict(workers=2, size=4)\nrandomness = dict(seed=7)\n')
    return str(path)


@pytest.fixture
def started(monkeypatch):
    """Return the names of the runs that were started; those named 'bad' fail with two lines in their log."""
    names = []

    def run(command, stdout, stderr, check, cwd, env):
        assert command[1] == str(ROOT / 'tools/train.py') and cwd == ROOT and env['OMP_NUM_THREADS'] == '1'
        folder = Path(command[4])
        assert command[3] == '--work-dir' and folder.is_absolute() and Path(command[2]) == folder / 'mini.py'
        names.append(folder.name)
        fails = folder.name.startswith('bad')
        stdout.write('step 1\nerror: the images are gone\n' if fails else 'done\n')
        return subprocess.CompletedProcess(command, 2 if fails else 0)

    monkeypatch.setattr(trials.subprocess, 'run', run)
    return names


def test_each_gets_its_config_and_none_is_run_twice(tmp_path, config, started, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = [Trial('a', config, 0), Trial('b', config, 5, {'loader.workers': 0})]
    said = []
    done = run_trials(planned, Path('out'), 2, said.append)
    assert [each.trial for each in done] == planned and sorted(started) == ['a', 'b'] and len(said) == 3
    assert said[0] == f'2 of 2 runs to train, 2 at once, in {tmp_path / "out"}'
    written = [Config.fromfile(each.folder / 'mini.py') for each in done]
    assert [cfg.randomness.seed for cfg in written] == [0, 5]
    assert [cfg.loader.to_dict() for cfg in written] == [dict(workers=2, size=4), dict(workers=0, size=4)]

    again = run_trials(planned, Path('out'), 1, said.append)
    assert again == done and len(started) == 2
    assert said[3:] == [f'0 of 2 runs to train, none at once, in {tmp_path / "out"}']


def test_another_config_or_half_a_run_is_run_anew(tmp_path, config, started):
    planned = [Trial(name, config, 0) for name in ('whole', 'half', 'other')]
    run_trials(planned, tmp_path / 'out', 1, str)
    (tmp_path / 'out/half/finished.json').unlink()
    (tmp_path / 'out/half/left').touch()
    started.clear()
    planned[2] = Trial('other', config, 0, {'rate': 2.0})
    run_trials(planned, tmp_path / 'out', 1, str)
    assert started == ['half', 'other'] and not (tmp_path / 'out/half/left').exists()
    started.clear()
    Path(config).write_text(Path(config).read_text().replace('size=4', 'size=8'))
    run_trials(planned, tmp_path / 'out', 1, str)
    assert started == ['whole', 'half', 'other']


def test_a_run_that_fails_is_named_with_its_log_and_ends_the_benchmark(tmp_path, config, started):
    planned = [Trial(name, config, 0) for name in ('first', 'bad', 'third')]
    with pytest.raises(UserError, match=r'run bad ended with exit 2: error: the images are gone \(.*bad/train\.log'):
        run_trials(planned, tmp_path, 1, str)
    assert started == ['first', 'bad']
    assert (tmp_path / 'first/finished.json').is_file() and not (tmp_path / 'bad/finished.json').exists()
    started.clear()
    with pytest.raises(UserError, match='the run bad'):
        run_trials(planned[:2], tmp_path, 1, str)
    assert started == ['bad']


def test_a_folder_that_cannot_be_made(tmp_path, config, started):
    (tmp_path / 'out').touch()
    with pytest.raises(UserError, match=r'cannot make or lock the folder .*out: '):
        run_trials([Trial('a', config, 0)], tmp_path / 'out', 1, str)
    assert started == []


def test_a_folder_of_a_run_that_cannot_be_made(tmp_path, config, started):
    (tmp_path / 'a').touch()
    with pytest.raises(UserError, match=r'cannot make the folder .*/a anew'):
        run_trials([Trial('a', config, 0)], tmp_path, 1, str)
    assert started == []


def test_two_benchmarks_in_one_folder(tmp_path, config, started, monkeypatch):
    planned = [Trial('a', config, 0)]
    run = trials.subprocess.run

    def meanwhile(*given, **options):
        with pytest.raises(UserError, match=r'another benchmark trains in .*out; .* another --out'):
            run_trials(planned, tmp_path / 'out', 1, str)
        assert run_trials([Trial('before', config, 0)], tmp_path / 'out', 1, str)  # nothing to train, no lock needed
        return run(*given, **options)

    run_trials([Trial('before', config, 0)], tmp_path / 'out', 1, str)
    monkeypatch.setattr(trials.subprocess, 'run', meanwhile)
    run_trials(planned, tmp_path / 'out', 1, str)
    assert started == ['before', 'a'] and (tmp_path / 'out/a/finished.json').is_file()
    monkeypatch.setattr(trials.subprocess, 'run', run)
    run_trials([Trial('b', config, 0)], tmp_path / 'out', 1, str)  # the first one's end opens the folder


def test_validations_of_a_run(tmp_path):
    folder = write_run(tmp_path / 'run')
    found = validations(folder)
    assert [epoch for epoch, _ in found] == list(range(1, 31))
    known = json.loads((folder / 'guard.json').read_text())['validations'][4]
    assert found[4][1]['coco/bbox_mAP'] == known['metrics']['coco/bbox_mAP']


@pytest.mark.parametrize('jobs, seeds, message', [
    (0, (0, ), '--jobs must be at least 1, got 0'), (1, (), '--seeds .* got none'), (1, (-1, ), r'--seeds .* got -1'),
    (1, (2, 2), '--seeds must be different whole numbers from 0, got 2 2')])
def test_options_out_of_range(jobs, seeds, message):
    with pytest.raises(UserError, match=message):
        LearningOptions(Path('out'), jobs, seeds)
