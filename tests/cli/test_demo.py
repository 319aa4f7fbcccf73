"""The demo: the small model's config in the place of another, and its weights out of the repository's Keras file."""
import re
import subprocess

import pytest
import torch
from mmengine.config import Config

from mgdet_plugin.cli.parser import cfg_options
from mgdet_plugin.cli.training.demo import use_demo
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import DEMO_WEIGHTS
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.weights.verify import verify_import
from tests.conftest import ROOT

CONFIGS = ROOT / 'configs'
IMPORTED = 'weights/digits_source.pth'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a work folder without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['train.py'])
    return tmp_path


@pytest.fixture
def commands(monkeypatch):
    """Return the trainings that were started; each leaves the file it is for."""
    started = []

    def run(command, check):
        assert check and command[1] == 'train.py'
        started.append(command[2:])
        torch.save({}, f'{command[-1]}/best.pth')

    monkeypatch.setattr(subprocess, 'run', run)
    return started


def test_it_takes_the_place_of_the_large_model(folder):
    full = f'{CONFIGS}/mgdet_model5_stage1.py'
    assert use_demo([full, '--amp'], train=True) == [full, '--amp']
    assert use_demo(['--demo', full, 'x.pth'], train=False) == [f'{CONFIGS}/mgdet_nano_stage1.py', 'x.pth']
    assert not list(folder.iterdir())
    with pytest.raises(UserError, match='needs a config'):
        use_demo(['--demo'], train=True)
    (folder / 'own.py').write_text('a = 1')
    with pytest.raises(UserError, match='no small model'):
        use_demo([f'{folder}/own.py', '--demo'], train=True)


@pytest.mark.parametrize('name', ['mgdet_model5_stage1', 'mgdet_model5_staged', 'mgdet_backbone_stage1'])
def test_its_weights_are_imported_once_and_fit(name, folder, commands, capsys):
    config, = use_demo([f'{CONFIGS}/{name}.py', '--demo'], train=True)
    assert f'{IMPORTED} is not there yet: importing it from {DEMO_WEIGHTS}' in capsys.readouterr().err
    cfg = Config.fromfile(config)
    assert check_weights(cfg) == []  # neither a name nor an anchor is another
    content = torch.load(IMPORTED)
    assert content['meta']['dataset_meta']['classes'] == list(cfg.metainfo.classes)
    assert [row['source'] for row in content['meta']['keras_import']['classes']['rows']] == list('0123456789')
    assert verify_import(DEMO_WEIGHTS, IMPORTED)['agrees']
    torch.save(dict(mine=1), IMPORTED)
    use_demo([config, '--demo'], train=True)
    assert torch.load(IMPORTED) == dict(mine=1) and not commands and not capsys.readouterr().err


def test_a_later_stage_starts_from_the_stages_before(folder, commands):
    for stage in (1, 2):
        (folder / f'work_dirs/mgdet_nano_stage{stage}').mkdir(parents=True)
    use_demo([f'{CONFIGS}/mgdet_model5_stage3.py', '--demo'], train=True)
    assert commands == [[f'{CONFIGS}/mgdet_nano_stage{stage}.py', '--work-dir', f'work_dirs/mgdet_nano_stage{stage}']
                        for stage in (1, 2)]
    assert (folder / IMPORTED).is_file()


@pytest.mark.parametrize(('name', 'command'), [
    ('mgdet_model5_stage1', rf'import_keras\.py \S+digits_source\.h5 {IMPORTED} --config \S+mgdet_nano_stage1\.py'),
    ('mgdet_model5_stage2', r'train\.py \S+mgdet_nano_stage1\.py --work-dir work_dirs/mgdet_nano_stage1 --demo')])
def test_its_weights_are_made_by_one_process(name, command, folder, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UserError, match=rf'is made by one process: first run python tools/{command}'):
        use_demo([f'{CONFIGS}/{name}.py', '--demo', '--launcher', 'pytorch'], train=True)
    assert not list(folder.iterdir())


@pytest.mark.parametrize('own', [['--cfg-options', 'load_from=own.pth'], ['--resume', 'epoch_3.pth']])
def test_a_run_from_other_weights_makes_none(own, folder, commands):
    use_demo([f'{CONFIGS}/mgdet_model5_stage1.py', '--demo', *own], train=True)
    assert not list(folder.iterdir()) and not commands


def test_without_the_flag_the_keras_file_is_named(folder):
    (folder / 'weights').mkdir()
    (folder / 'weights/digits_source.h5').touch()
    with pytest.raises(UserError, match=rf'import_keras\.py weights/digits_source\.h5 {IMPORTED} --config'):
        check_weights(Config.fromfile(CONFIGS / 'mgdet_nano_stage1.py'))


def test_make_demo_is_made_of_tools_and_files_that_are_there():
    said = subprocess.run(['make', '--dry-run', 'demo'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = re.findall(r'tools/\w+\.py (?:.*\\\n)*.*', said)
    assert [re.match(r'tools/(\w+)', each)[1] for each in commands] == [
        'import_keras', 'plan', 'train', 'compare', 'check_run', 'plot_run', 'draw']
    assert '--quiet' in commands[2]
    for path in re.findall(r'(?:tools|configs|weights)/[\w./]+\.(?:py|h5)', said):
        assert (ROOT / path).is_file(), path
    short = re.search(r'--cfg-options ((?:\S+=\S+\s*\\?\s*)+)', commands[2])[1].replace('\\', ' ').split()
    assert all(each in commands[1] for each in short)  # the plan that is shown is that of the run
    cfg = Config.fromfile(CONFIGS / 'mgdet_nano_keep.py')
    cfg.merge_from_dict(cfg_options(short))
    assert Plan.from_cfg(cfg).keep.images_used < 50 and cfg.default_hooks.channels_last.type == 'ChannelsLastHook'
    imported = ' '.join(commands[0].replace('\\\n', ' ').split())
    assert imported in ' '.join((ROOT / 'weights/README.md').read_text().replace('\\\n', ' ').split())
