"""What a person gets wrong: one line, the value seen, what to do, and nothing written."""
import sys
from importlib import import_module

import pytest
import torch

from mgdet_plugin.cli import COMMANDS
from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.common.resources import mmdet_script
from mgdet_plugin.engine.preflight import prepare_test, prepare_train
from tests.conftest import ROOT
from tests.support.small_run import make_dataset, run_tool, write_config


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('bad') / 'data')


@pytest.fixture
def argv(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py'])


def test_stage_1_without_coco(tmp_path):
    done = run_tool('train', ROOT / 'configs/mgdet_model5_stage1.py', cwd=tmp_path)
    assert done.returncode == 2
    line, = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert 'data/coco/annotations/instances_train2017.json' in line
    assert 'data/coco/{annotations,train2017,val2017}' in line
    assert '--demo' in line and 'Traceback' not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_weights(tmp_path, data, argv):
    config = write_config(tmp_path / 'c.py', data, load_from=str(tmp_path / 'model5.pth'))
    with pytest.raises(UserError, match=r'model5\.pth are not there; import your Keras file'):
        prepare_train([str(config)])
    with pytest.raises(UserError, match='are not there'):
        prepare_test([str(config), str(tmp_path / 'other.pth')])
    (tmp_path / 'epoch_2.pth').touch()  # of a run without validation
    with pytest.raises(UserError, match=r'best\.pth are not there; the last .* saved are .*epoch_2\.pth$'):
        prepare_test([str(config), str(tmp_path / 'best.pth')])


def test_foreign_weights(tmp_path, data):
    torch.save(dict(state_dict={'conv.weight': torch.zeros(3)}), tmp_path / 'foreign.pth')
    config = write_config(tmp_path / 'c.py', data, load_from=str(tmp_path / 'foreign.pth'))
    done = run_tool('train', config, '--work-dir', tmp_path / 'run', cwd=tmp_path)
    assert done.returncode == 2
    line, = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert '1 unexpected (conv.weight)' in line and 'missing' in line
    assert not (tmp_path / 'run').exists()


def test_class_count_of_the_head(tmp_path, data, argv):
    config = write_config(tmp_path / 'c.py', data, **{'model.bbox_head.num_classes': 4})
    with pytest.raises(UserError, match=r'has 3 classes .*num_classes is 4'):
        prepare_train([str(config)])


def test_sides_that_are_no_multiple_of_32(tmp_path, data):
    config = write_config(tmp_path / 'c.py', data, load_from=None)
    text = config.read_text()
    assert '64,' in text
    config.write_text(text.replace('64,', '100,'))
    done = run_tool('train', config, '--work-dir', tmp_path / 'run', cwd=tmp_path)
    assert done.returncode == 2
    line, = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert '100' in line and '32' in line
    assert not (tmp_path / 'run').exists()


def test_missing_config(argv):
    with pytest.raises(UserError, match=r'configs/nothing\.py is not there'):
        prepare_train(['configs/nothing.py'])


def test_unknown_mmdet_tool():
    with pytest.raises(UserError, match=r"no tool 'analysis_tools/nothing'.*analysis_tools/confusion_matrix"):
        mmdet_script('analysis_tools/nothing')
    with pytest.raises(UserError, match='no tool'):
        mmdet_script('../../../os')
    assert mmdet_script('analysis_tools/get_flops').name == 'get_flops.py'


@pytest.mark.parametrize(('words', 'option'), [
    (['look', 'mgdet_nano_keep', '--out', ''], '--out'), (['init', '.', '--out='], '--out'),
    (['doctor', ''], 'an argument'), (['detect', 'a.jpg', '--weights', ' '], '--weights'),
    (['train', 'mgdet_nano_keep', '--work-dir='], '--work-dir')])
def test_an_empty_argument_means_nothing(words, option):
    command, *arguments = words
    with pytest.raises(UserError, match=f'^{option} is empty; give a value, or leave it out; see --help'):
        getattr(import_module(f'mgdet_plugin.cli.{COMMANDS[command]}.{command}'), f'{command}_command')(arguments)


@pytest.mark.parametrize('words', [
    ['look', 'mgdet_nano_keep', '--out', '/proc/x.png'], ['doctor', 'mgdet_nano_keep', '--out', '/proc/x'],
    ['anchors', 'mgdet_nano_keep', '--out', '/proc/x'], ['init', 'tests/data', '--out', '/proc/x.py'],
    ['train', 'mgdet_nano_keep', '--work-dir', '/proc/x'],
    ['test', 'mgdet_nano_keep', 'README.md', '--out', '/proc/x.pkl']])
def test_where_nothing_can_be_written_is_found_before_any_work(words, argv, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *arguments = words
    with pytest.raises(UserError, match=r'cannot write (to )?/proc/x\S*: no file can be made'):
        getattr(import_module(f'mgdet_plugin.cli.{COMMANDS[command]}.{command}'), f'{command}_command')(arguments)


@pytest.mark.parametrize('command', ['plan', 'doctor', 'anchors'])
@pytest.mark.parametrize('part', ['train_dataloader', 'model'])
def test_a_part_that_a_config_lacks_is_named(command, part):
    module = import_module(f'mgdet_plugin.cli.{COMMANDS[command]}.{command}')
    with pytest.raises(UserError, match=rf'mgdet_nano_staged\.py has no {part}; inherit a config that has'):
        getattr(module, f'{command}_command')(['mgdet_nano_staged', '--cfg-options', f'{part}=None'])


def test_one_line_and_exit_2(capsys):
    with pytest.raises(SystemExit) as stopped, user_errors_to_exit():
        raise UserError("two\n  lines, and a name as it is: 'a  b '\n")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: two lines, and a name as it is: 'a  b '\n"


@pytest.mark.parametrize(('error', 'line'), [
    (PermissionError(13, 'Permission denied', 'set/train.json'), 'cannot use set/train.json: Permission denied; '),
    (OSError(5, 'Input/output error', b'a.jpg'), 'cannot use a.jpg: Input/output error; ')])
def test_a_file_the_machine_does_not_give_is_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as stopped, user_errors_to_exit():
        raise error
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f'error: {line}correct that, or give another\n'


@pytest.mark.parametrize('error', [FileNotFoundError(2, 'No such file or directory', 'a'), PermissionError('by us')])
def test_a_mistake_of_the_code_keeps_its_traceback(error):
    with pytest.raises(type(error)), user_errors_to_exit():
        raise error
