"""A run that goes on after its end is the run that was planned longer, bit for bit."""
from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import GuardRecord
from mgdet_plugin.engine.preflight import prepare_train
from tests.support.small_run import make_dataset
from tests.support.staged_run import FULL, HEAD, NECK, differences, newest, run, staged_config, state_of

EMA = dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.02)
FLAT = dict(HEAD, schedule='constant', warmup_epochs=1)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp('data') / 'set')


def config(folder: Path, data: Path, stages: list[dict], values: tuple[float, ...] = (0.1, ), **options: Any) -> Config:
    cfg = staged_config(folder, data, stages, custom_hooks=[EMA], **options)
    cfg.val_evaluator = dict(type='TableMetric', values=values)
    return cfg


def extended(end: int) -> Any:
    """What `--more-epochs` makes of a config."""
    return lambda cfg: cfg.train_cfg.update(end_epoch=end)


def state(work_dir: Path) -> list[Any]:
    found = state_of(newest(work_dir))
    found['mgdet'] = {key: value for key, value in found['mgdet'].items() if key != 'more'}
    return [found, (work_dir / 'results.csv').read_text()]


def test_it_is_the_longer_run_bit_for_bit_also_stopped_and_resumed(data: Path, tmp_path: Path) -> None:
    """Moments, averages, the guard, the best checkpoint and results.csv."""
    values = (0.1, 0.5, 0.4, 0.6, 0.2)
    longer = config(tmp_path, data, [dict(FULL, epochs=1), dict(FLAT, epochs=4)], values)
    longer.plan = dict(start='full', allow=['mixing-while-frozen'])
    run(longer, tmp_path / 'longer')
    short = config(tmp_path, data, [dict(FULL, epochs=1), dict(FLAT, epochs=2)], values)
    short.plan = longer.plan
    run(short, tmp_path / 'run')
    assert newest(tmp_path / 'run')['meta']['epoch'] == 3
    run(short, tmp_path / 'run', kill=('epoch', 4), resume=True, change=extended(5))
    assert run(short, tmp_path / 'run', resume=True).epoch == 5
    assert differences(state(tmp_path / 'run'), state(tmp_path / 'longer')) == []
    assert newest(tmp_path / 'run')['message_hub']['runtime_info']['best_score'] == 0.6
    assert run(short, tmp_path / 'run', resume=True, change=extended(5)).epoch == 5  # told again, it is over


def test_a_cosine_stays_at_its_end_and_says_so(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(tmp_path, data, [HEAD])
    run(cfg, tmp_path / 'run')
    cfg.log_level = 'INFO'
    runner = run(cfg, tmp_path / 'run', resume=True, change=extended(3))
    rows = csv.DictReader((tmp_path / 'run/results.csv').read_text().splitlines())
    _, last, more = (float(row['bbox_head_lr']) for row in rows)
    assert last > more == pytest.approx(1e-7)
    assert runner.epoch == 3
    log = max((tmp_path / 'run').glob('*/*.log'), key=lambda path: path.stat().st_mtime).read_text()
    assert "stage 'head' goes on, epoch 3, at a rate of 1e-07, where its cosine ended" in log


def test_one_that_ended_early_has_its_patience_anew(data: Path, tmp_path: Path) -> None:
    """It ended after 3 of 6 epochs; three more end after the next patience of 2, in the second."""
    cfg = config(tmp_path, data, [dict(FLAT, epochs=6, until=dict(metric='table/value', patience=2))],
                 (0.5, 0.4, 0.3, 0.2, 0.1))
    assert run(cfg, tmp_path / 'run').epoch == 3
    assert newest(tmp_path / 'run')['mgdet']['ended']
    runner = run(cfg, tmp_path / 'run', resume=True, change=extended(6))
    assert runner.epoch == 5
    record = newest(tmp_path / 'run')['mgdet']
    assert (record['best'], record['best_epoch'], record['misses'], record['ended']) == (0.5, 1, 2, True)


@pytest.fixture(scope='module')
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and the folder of a run of two epochs that has ended, and has a checkpoint of its first."""
    folder = tmp_path_factory.mktemp('ended')
    cfg = config(folder, data, [HEAD])
    run(cfg, folder / 'run')
    cfg.dump(folder / 'config.py')
    return folder / 'config.py', folder / 'run'


def prepared(ended: tuple[Path, Path], *words: str, more: int = 3) -> list[str] | None:
    return prepare_train([str(ended[0]), '--work-dir', str(ended[1]), *words], more)


def test_the_command_counts_from_the_end(ended: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    settled = prepared(ended)
    assert settled is not None and settled[-3:] == [f'--resume={ended[1]}/epoch_2.pth', '--cfg-options',
                                                    'train_cfg.end_epoch=5']
    assert prepare_train([str(ended[0]), '--work-dir', str(ended[1]), '--resume']) is None
    assert 'To train on give --more-epochs N' in capsys.readouterr().err


def test_a_checkpoint_behind_the_end_trains_nothing(ended: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a longer run, or of one whose epoch is forged; in another folder, where nothing says that it had ended."""
    content = torch.load(ended[1] / 'epoch_2.pth', weights_only=False)
    for epoch, cap, told in ((2, 1, 'after 1;'), (10**9, 9, 'after 2;')):
        content['meta']['epoch'] = epoch
        torch.save(content, tmp_path / 'other.pth')
        with pytest.raises(UserError, match=rf'other\.pth says that {epoch:,} epochs lie behind it, .* {told}'):
            prepare_train([str(ended[0]), '--work-dir', str(tmp_path / 'run'), '--resume', str(tmp_path / 'other.pth'),
                           '--cfg-options', f'train_cfg.max_epochs={cap}'])


@pytest.mark.parametrize('guarded', [True, False])
def test_a_run_killed_before_it_saved_an_added_epoch_goes_on_to_its_end(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], guarded: bool) -> None:
    """Also where no guard keeps a record: the checkpoint knows nothing of it, the config the run left does."""
    cfg = config(tmp_path, data, [HEAD])
    if not guarded:
        cfg.default_hooks.pop('drift_guard')
    words = [cfg.filename, '--work-dir', str(tmp_path / 'run'), '--resume']
    cfg.dump(cfg.filename)
    steps = run(cfg, tmp_path / 'run').iter
    told = dict(load_from=str(tmp_path / 'run/epoch_2.pth'), train_cfg=dict(end_epoch=5))
    run(cfg, tmp_path / 'run', kill=('iter', steps + 1), resume=True, change=lambda each: each.merge_from_dict(told))
    settled = prepare_train(words)
    assert settled is not None and settled[-2:] == ['--cfg-options', 'train_cfg.end_epoch=5']
    assert '3 epochs had been added to this run by --more-epochs: it goes on to epoch 5' in capsys.readouterr().err
    assert run(cfg, tmp_path / 'run', resume=True, change=lambda each: each.merge_from_dict(told)).epoch == 5
    settled = prepare_train(words)
    said = capsys.readouterr().err
    assert 'had been added' not in said
    assert settled is None and 'already finished' in said if guarded else settled is not None


@pytest.mark.parametrize(('words', 'line'), [
    (['--resume'], r'--more-epochs 3 goes on from .* and --resume auto says otherwise'),
    (['--cfg-options', 'load_from=a.pth'], 'load_from says otherwise'),
    (['--cfg-options', 'train_cfg.max_epochs=9'], 'train_cfg.max_epochs says otherwise'),
    (['--cfg-options', 'stages.0.epochs=7'], 'has done 2 of its 7 epochs; --resume goes on with it'),
    (['--work-dir', 'nowhere'], 'there is no checkpoint in nowhere to go on from')])
def test_what_cannot_be_is_one_line(ended: tuple[Path, Path], words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        prepared(ended, *words)


def test_a_run_the_guard_stopped_does_not_go_on(ended: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardRecord, 'read', lambda path: GuardRecord(ended='guard'))
    with pytest.raises(UserError, match=r'the guard has stopped the run in \S+ after 2 epochs; .*check_run'):
        prepared(ended)


def test_a_stage_added_to_a_run_that_ended_early_is_still_to_come(
        ended: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config(tmp_path, data, [HEAD, NECK]).dump(tmp_path / 'config.py')
    monkeypatch.setattr(GuardRecord, 'read', lambda path: GuardRecord(ended='early_stopping'))
    words = ['--work-dir', str(ended[1]), '--resume']
    assert prepare_train([str(ended[0]), *words]) is None
    settled = prepare_train([str(tmp_path / 'config.py'), *words])
    assert settled is not None and settled[-1] == f'--resume={ended[1]}/epoch_2.pth'
    with pytest.raises(UserError, match='has done 2 of its 4 epochs; --resume goes on'):
        prepared((tmp_path / 'config.py', ended[1]))
