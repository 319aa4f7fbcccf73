"""What --resume starts from: the newest checkpoint that is whole, on every rank alike, and a line on what it is not."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.preflight import prepare_train
from mgdet_plugin.engine.resume_choice import without_resume
from tests.support.small_run import CLASSES, make_dataset, write_config


@pytest.fixture(scope='module')
def job(tmp_path_factory) -> tuple[Path, dict]:
    """Return a config that starts from weights, and the model's state."""
    folder = tmp_path_factory.mktemp('resume')
    data = make_dataset(folder / 'data')
    config = write_config(folder / 'small.py', data, load_from=str(folder / 'weights.pth'),
                          **{'train_cfg.max_epochs': 5})
    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    state = MODELS.build(cfg.model).state_dict()
    torch.save({'state_dict': state, 'meta': {'dataset_meta': {'classes': CLASSES}}}, folder / 'weights.pth')
    return config, state


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)


def save(path: Path, state: dict, epoch: int, iteration: int, **more) -> Path:
    """Save a checkpoint as a run does."""
    path.parent.mkdir(exist_ok=True)
    torch.save({'state_dict': state, 'meta': {'epoch': epoch, 'iter': iteration}, 'message_hub': {}, 'optimizer': {},
                **more}, path)
    return path


@pytest.fixture
def run(job, tmp_path) -> Path:
    """Return a work folder with the checkpoints of three epochs."""
    for epoch in (1, 2, 3):
        path = save(tmp_path / 'run' / f'epoch_{epoch}.pth', job[1], epoch, 10 * epoch)
    (path.parent / 'last_checkpoint').write_text(str(path))
    return path.parent


def resume(job, run: Path, *arguments: str) -> list[str]:
    """Return the arguments handed to mmdet's script."""
    return prepare_train([str(job[0]), '--work-dir', str(run), *arguments])


def flip(path: Path) -> None:
    """Change bytes amid the weights: torch loads the file all the same."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 64] = bytes(byte ^ 0xff for byte in content[middle:middle + 64])
    path.write_bytes(content)
    torch.load(path)


def rename_a_weight(path: Path) -> None:
    content = torch.load(path)
    content['state_dict']['other'] = content['state_dict'].popitem()[1]
    torch.save(content, path)


def keep_weights_alone(path: Path) -> None:
    torch.save({'state_dict': torch.load(path)['state_dict']}, path)


DAMAGE = {
    'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
    'a byte short': lambda path: os.truncate(path, path.stat().st_size - 1),
    'empty': lambda path: os.truncate(path, 0),
    'flipped bytes': flip,
    'other names': rename_a_weight,
    'weights alone': keep_weights_alone,
    'text': lambda path: path.write_text('no checkpoint'),
}


@pytest.mark.parametrize('name', list(DAMAGE))
def test_damaged_newest_checkpoint_is_passed_over_and_said(name, job, run, capsys):
    DAMAGE[name](run / 'epoch_3.pth')
    handed = resume(job, run, '--resume')
    assert handed == [str(job[0]), '--work-dir', str(run), f'--resume={run}/epoch_2.pth']
    line, = [line for line in capsys.readouterr().err.splitlines() if 'resuming from' in line]
    assert line.startswith(f'{run}/epoch_3.pth ') and line.endswith(f': resuming from {run}/epoch_2.pth')


def test_a_whole_newest_checkpoint_is_taken_without_a_word(job, run, capsys):
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/epoch_3.pth'
    assert 'resum' not in capsys.readouterr().err


@pytest.mark.parametrize('name', list(DAMAGE))
def test_a_named_checkpoint_that_is_damaged_is_refused_and_a_good_one_named(name, job, run):
    DAMAGE[name](run / 'epoch_3.pth')
    with pytest.raises(UserError, match=rf'cannot resume: {run}/epoch_3\.pth .*good one there is {run}/epoch_2\.pth'):
        resume(job, run, '--resume', f'{run}/epoch_3.pth')
    assert resume(job, run, f'--resume={run}/epoch_1.pth')[-1] == f'--resume={run}/epoch_1.pth'


def test_a_named_checkpoint_that_is_missing(job, run, tmp_path):
    with pytest.raises(UserError, match=r'epoch_4\.pth to resume from is not there; .*epoch_3\.pth'):
        resume(job, run, '--resume', f'{run}/epoch_4.pth')
    with pytest.raises(UserError, match=f'there is no good one in {tmp_path}/none either'):
        resume(job, run, '--resume', f'{tmp_path}/none/epoch_4.pth')


def test_no_good_checkpoint_stops(job, run):
    for path in run.glob('*.pth'):
        os.truncate(path, 100)
    with pytest.raises(UserError, match=r'no checkpoint in \S+run can be used: .*epoch_1.*epoch_2.*epoch_3'):
        resume(job, run, '--resume')


@pytest.mark.parametrize('asked', [['--resume'], ['--resume', 'auto'], ['--cfg-options', 'resume=True'],
                                   ['--resume', '--cfg-options', 'resume=True']])
def test_no_checkpoint_starts_from_load_from(asked, job, tmp_path, capsys):
    handed = resume(job, tmp_path / 'new', *asked)
    assert handed[-2:] == ['--cfg-options', 'resume=False'] and not [each for each in handed if '--resume' in each]
    start = job[0].with_name('weights.pth')
    assert f'no checkpoint in {tmp_path}/new to resume from: starting from {start}\n' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


def test_no_checkpoint_and_no_weights_is_told(job, tmp_path):
    with pytest.raises(UserError, match=r'the weights \S+gone\.pth are not there'):
        resume(job, tmp_path / 'new', '--resume', '--cfg-options', f'load_from={tmp_path}/gone.pth')


@pytest.mark.parametrize('named', [None, '', 'epoch_1.pth', 'epoch_9.pth'])
def test_last_checkpoint_is_not_believed(named, job, run):
    if named is None:
        (run / 'last_checkpoint').unlink()
    else:
        (run / 'last_checkpoint').write_text(named and str(run / named))
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/epoch_3.pth'


def test_the_newest_is_so_by_what_is_stored(job, run):
    save(run / 'iter_5.pth', job[1], 3, 35)
    os.utime(run / 'iter_5.pth', (0, 0))
    save(run / 'epoch_10.pth', job[1], 0, 3)
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/iter_5.pth'


def test_checkpoints_elsewhere_and_by_other_names_are_found(job, run, tmp_path):
    elsewhere = save(tmp_path / 'elsewhere' / 'epoch_4.pth', job[1], 4, 40)
    (run / 'last_checkpoint').write_text(str(elsewhere))
    own = f'default_hooks.checkpoint.out_dir={elsewhere.parent}'
    assert resume(job, run, '--resume', '--cfg-options', own)[-1] == f'--resume={elsewhere}'
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/epoch_3.pth'  # another folder's is nobody's
    save(run / 'state-5.pth', job[1], 5, 50)
    handed = resume(job, run, '--resume', '--cfg-options', 'default_hooks.checkpoint.filename_tmpl=state-{}.pth')
    assert handed[-1] == f'--resume={run}/state-5.pth'


def test_best_checkpoints_and_left_overs_are_not_resumed_from(job, run):
    for name in ('best.pth', 'best_mAP_epoch_9.pth', '.epoch_9.pth.1.tmp'):
        save(run / name, job[1], 9, 90)
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/epoch_3.pth'


def test_resume_in_the_config_goes_on_from_its_load_from_if_that_is_a_run(job, run, capsys):
    auto = resume(job, run, '--cfg-options', 'resume=True')
    assert auto[-1] == f'--resume={run}/epoch_3.pth'
    named = resume(job, run, '--cfg-options', 'resume=True', f'load_from={run}/epoch_1.pth')
    assert named[-1] == f'--resume={run}/epoch_1.pth'
    remote = [str(job[0]), '--work-dir', str(run), '--resume', 's3://bucket/epoch_1.pth']
    assert without_resume(remote) == remote[:3]


def test_a_checkpoint_without_optimizer_state_is_said(job, run, capsys):
    content = torch.load(run / 'epoch_3.pth')
    del content['optimizer']
    torch.save(content, run / 'epoch_3.pth')
    assert resume(job, run, '--resume')[-1] == f'--resume={run}/epoch_3.pth'
    assert 'epoch_3.pth holds no optimizer state' in capsys.readouterr().err


def test_every_rank_chooses_alike_writes_nothing_and_one_speaks(job, run, capsys, monkeypatch):
    os.truncate(run / 'epoch_3.pth', 100)
    before = {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]}
    said = []
    for rank in ('0', '1'):
        monkeypatch.setenv('RANK', rank)
        handed = resume(job, run, '--resume', '--launcher', 'pytorch')
        assert handed[-1] == f'--resume={run}/epoch_2.pth'
        said.append(capsys.readouterr().err)
    assert said[0].count('resuming from') == 1 and said[1] == ''
    assert {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]} == before


def test_the_checks_run_on_every_rank(job, tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(UserError, match='are not there'):
        resume(job, tmp_path, '--launcher', 'pytorch', '--cfg-options', f'load_from={tmp_path}/gone.pth')


@pytest.mark.parametrize(('arguments', 'kept'), [
    (['c.py'], ['c.py']),
    (['c.py', '--resume'], ['c.py']),
    (['--resume', 'a.pth', 'c.py', '--amp'], ['c.py', '--amp']),
    (['c.py', '--resume=a.pth', '--amp'], ['c.py', '--amp']),
    (['c.py', '--resume', '--amp'], ['c.py', '--amp']),
    (['c.py', '--res', 'auto'], ['c.py']),
    (['c.py', '--cfg-options', 'resume=True', 'a=1'], ['c.py', '--cfg-options', 'resume=True', 'a=1']),
])
def test_resume_is_taken_out_as_argparse_reads_it(arguments, kept):
    assert without_resume(arguments) == kept
