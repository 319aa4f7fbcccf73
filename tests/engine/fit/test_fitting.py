"""A run fitted to time and memory: by hand what follows from figures, and whole runs that are fitted."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.engine.fit import fitting, stage_lengths
from mgdet_plugin.engine.fit.fitting import Batch, Wish, as_words, epoch_entries, fit_batch, parse_hours
from mgdet_plugin.engine.fit.stage_lengths import Costs, fit_hours, fitted_epochs
from mgdet_plugin.plan.progress import RECORD
from tests.support.fork_server import ROOT, environment
from tests.support.small_run import make_dataset, run_tool, write_config
from tests.support.staged_run import differences, state_of

STAGES = [dict(name='head', epochs=5, freeze_level=2, lr=1e-4), dict(name='neck', epochs=5, freeze_level=1, lr=5e-5),
          dict(name='full', epochs=10, freeze_level=0, lr=3e-5)]
STEPS = [dict(step=0.1, iterations=10, build=2.0, first=0.5, checkpoint=0.2, validation=1.0),
         dict(step=0.2, iterations=10), dict(step=0.4, iterations=10)]


def plan(**more: object) -> Config:
    return Config({'stages': [dict(each) for each in STAGES], 'train_cfg': dict(val_interval=5), **more})


@pytest.mark.parametrize('text, wanted', [('8', Batch(8)), ('auto', Batch(None)), ('auto:0.5', Batch(None, 0.5)),
                                          ('auto:1', Batch(None, 1.0))])
def test_a_batch_is_a_number_or_found(text, wanted):
    assert Batch.parse(text) == wanted


@pytest.mark.parametrize('text', ['0', '-3', '2.5', 'auto:', 'auto:0', 'auto:1.5', 'auto:nan', 'auto:x', 'all', ''])
def test_what_is_no_batch(text):
    with pytest.raises(UserError, match='--batch takes a whole number'):
        Batch.parse(text)


@pytest.mark.parametrize('text', ['0', '-1', 'nan', 'inf', 'two', ''])
def test_what_are_no_hours(text):
    with pytest.raises(UserError, match='--hours takes a number above 0'):
        parse_hours(text)


def test_what_a_run_takes():
    costs = Costs(plan(default_hooks=dict(guard=dict(type='DriftGuardHook'), checkpoint=dict(interval=2))), STEPS)
    # build, first batch, guard 2 and page 2 validations; 4 validations, 10 checkpoints; 5, 10 and 40 s of steps
    assert costs.seconds([5, 5, 10]) == pytest.approx(2.5 + 4 + 4 + 2 + 5 + 10 + 40)
    assert Costs(plan(evaluate=False), STEPS).seconds([1, 1, 1]) == pytest.approx(2.5 + 3 + 3 * 0.2 + 1 + 2 + 4)


@pytest.mark.parametrize('seconds', [20, 40, 67, 100, 1000, 100000])
def test_stages_fill_the_time_in_proportion(seconds):
    costs = Costs(plan(evaluate=False), STEPS)
    epochs = fitted_epochs([5, 5, 10], costs, seconds)
    assert costs.seconds(epochs) <= seconds
    for index in range(3):  # nothing more fits but by leaving the proportions
        longer = [length + (each == index) for each, length in enumerate(epochs)]
        assert costs.seconds(longer) > seconds or longer[index] > -(-max(epochs) * [5, 5, 10][index] // 10)
    assert min(epochs) >= 1
    if seconds > 1000:
        assert epochs[0] == pytest.approx(epochs[1], abs=1) and epochs[2] == pytest.approx(2 * epochs[0], abs=2)


def test_hours_that_are_too_few_say_how_many_are_needed(monkeypatch):
    monkeypatch.setattr(stage_lengths, 'measured', lambda cfg, wish: STEPS)
    with pytest.raises(UserError, match=r'one epoch of each of the 3 stages.* takes about 13 s, and 7 s are left; give '
                                        r'at least 0\.00\d'):
        fit_hours(plan(evaluate=False), 0.002, time.monotonic())


def test_warmup_and_boost_keep_their_share():
    cfg = plan()
    cfg.stages[2].update(warmup_epochs=2.0, boost_epochs=1)
    cfg.merge_from_dict(epoch_entries(cfg, [2, 3, 5]))
    assert [each['epochs'] for each in cfg.stages] == [2, 3, 5]
    assert (cfg.stages[2].warmup_epochs, cfg.stages[2].boost_epochs) == (1.0, 0.5)
    assert cfg.train_cfg.val_interval == 2 and cfg.fitted.epochs == [2, 3, 5]


@pytest.mark.parametrize('room, found', [(1000, 90), (250, 15), (105, None)])
def test_the_line_through_the_last_two_gives_the_largest(monkeypatch, room, found):
    """Memory of 100 and 10 an image; above 80 images a fixed part more than the line says."""

    def takes(size: int) -> int:
        return 100 + 10 * size + (60 if size > 80 else 0)

    asked = []

    def measure(cfg, wish):
        asked.append(wish['sizes'])
        rows = [dict(batch=size, limit=room, peak=takes(size), iterations=1000 // size) for size in wish['sizes']]
        last = next((index for index, row in enumerate(rows) if row['peak'] > room), len(rows))
        return rows[:max(1, last)]

    monkeypatch.setattr(fitting, 'measured', measure)
    if found is None:
        with pytest.raises(UserError, match='--batch auto: a batch of 2 takes'):
            fit_batch(plan(), None)
        return
    images, said = fit_batch(plan(), None)
    assert takes(images) <= room and f'{images} images a step' in said
    assert images >= 0.8 * found and len(asked) <= 5


def test_several_processes_do_not_measure():
    for wish, what in ((Wish(hours=1.0), '--hours'), (Wish(Batch(None)), '--batch auto')):
        with pytest.raises(UserError, match=f'{what} measures in one process'):
            wish.check(plan(launcher='pytorch'))
    Wish(Batch(4)).check(plan(launcher='pytorch'))
    with pytest.raises(UserError, match='--hours fits the stages of a plan'):
        Wish(hours=1.0).check(Config(dict(launcher='none')))


def test_words_are_read_again():
    from mgdet_plugin.cli.parser import cfg_options
    entries = {'stages.0.epochs': 3, 'fitted.epochs': [3, 1], 'fitted.hours': 0.5, 'auto_scale_lr.enable': True}
    assert cfg_options(as_words(entries)[1:]) == entries


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('fit')
    options = dict(stages=[dict(STAGES[0], epochs=2), dict(STAGES[2], epochs=4)], load_from=None,
                   plan=dict(start='nothing', early_stopping=None))
    path = write_config(folder / 'config.py', make_dataset(folder / 'data', count=24), **options)
    cfg = Config.fromfile(path)
    cfg.train_cfg.pop('max_epochs')
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True)  # nothing may wait for its end
    cfg.dump(path)
    return path


def test_a_run_ends_within_its_hours_and_goes_on_with_its_plan(config, tmp_path):
    hours, begun, before = 80 / 3600, time.monotonic(), os.times()
    # not forked by the tests' server: its imports count, and so does what a child of this process computes
    done = subprocess.run([sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', 'run', '--hours',
                           f'{hours:.5f}'], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
                          env=environment())
    seconds, after = time.monotonic() - begun, os.times()
    assert done.returncode == 0, done.stderr
    fitted = Config.fromfile(tmp_path / 'run' / 'config.py')
    assert fitted.fitted.epochs == [each.epochs for each in fitted.stages]
    assert f'head {number_of(fitted.stages[0].epochs, "epoch")} of 6 steps' in done.stderr
    newest = torch.load((tmp_path / 'run' / 'last_checkpoint').read_text().strip(), weights_only=True)
    assert newest[RECORD]['fitted'] == dict(epochs=list(fitted.fitted.epochs), hours=pytest.approx(hours, abs=1e-5))
    again = run_tool('train', str(config), '--work-dir', 'run', '--resume', '--hours', '5', cwd=tmp_path)
    assert again.returncode == 0 and 'is already finished' in again.stderr
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    if computed < 0.6 * seconds:
        pytest.skip(f'other work left the run {computed:.0f} of {seconds:.0f} s of a processor: its time says nothing')
    assert seconds == pytest.approx(80, rel=0.2)


def test_a_batch_that_was_found_is_the_one_given_by_hand(config, tmp_path):
    short = ['--cfg-options', 'stages.0.epochs=1', 'stages.1.epochs=1']
    found = run_tool('train', str(config), '--work-dir', 'auto', '--batch', 'auto', *short, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    size = Config.fromfile(tmp_path / 'auto' / 'config.py').fitted.batch
    assert f'--batch auto: {size} images a step take' in found.stderr
    given = run_tool('train', str(config), '--work-dir', 'given', '--batch', str(size), *short, cwd=tmp_path)
    assert given.returncode == 0, given.stderr
    one, other = (torch.load(Path((tmp_path / each / 'last_checkpoint').read_text().strip()), weights_only=True)
                  for each in ('auto', 'given'))
    assert differences(state_of(one), state_of(other)) == []
    assert json.dumps(one[RECORD]['fitted']) == json.dumps(other[RECORD]['fitted']) == json.dumps(dict(batch=size))
