"""Files of the package are found from any folder, in a checkout and installed."""
import os
import subprocess
import sys

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import CONFIGS, config_path
from tests.conftest import ROOT


@pytest.mark.parametrize('name', ['mgdet_nano_staged', 'mgdet_nano_staged.py', 'configs/mgdet_nano_staged.py',
                                  'mgdet_plugin::mgdet_nano_staged.py', 'mgdet::mgdet_nano_staged'])
def test_a_name_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == CONFIGS / 'mgdet_nano_staged.py'
    assert config_path('scratch/multigrid_nano_bccd') == CONFIGS / 'scratch/multigrid_nano_bccd.py'


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mgdet_nano_staged.py').touch()
    assert str(config_path('mgdet_nano_staged.py')) == 'mgdet_nano_staged.py'
    (tmp_path / 'my_own_plan.py').touch()
    with pytest.raises(UserError, match=r'my_own_plam\.py is not there; the nearest name is my_own_plan\.py'):
        config_path('my_own_plam.py')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Return a folder that holds what an installation does, and no checkout."""
    folder = tmp_path_factory.mktemp('built')
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', folder, 'build_py', '--build-lib',
                    folder / 'lib'], cwd=ROOT, check=True, capture_output=True)
    return folder / 'lib'


def test_an_installation_carries_all_a_checkout_finds(built):
    mim = built / 'mgdet_plugin/.mim'
    for folder, pattern in (('configs', '**/*.py'), ('tools', '*')):
        there = {path.relative_to(ROOT) for path in (ROOT / folder).glob(pattern) if path.suffix}
        assert there and there == {path.relative_to(mim) for path in (mim / folder).glob(pattern) if path.suffix}
    assert (mim / 'weights/digits_source.h5').stat().st_size > 10 ** 6
    for name in ('model-index.yml', 'configs/metafile.yml'):
        assert (mim / name).read_bytes() == (ROOT / name).read_bytes()
    assert not list(mim.rglob('__pycache__')) and not (built / 'benchmarks').exists()


def test_an_installation_finds_them(built, tmp_path):
    def call(*arguments):
        code = 'import mgdet_plugin.cli as cli; cli.main()'
        return subprocess.run([sys.executable, '-c', code, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              check=False, env={**os.environ, 'PYTHONPATH': str(built)}, timeout=200)

    plan = call('plan', 'mgdet_nano_staged.py')
    assert plan.returncode == 0 and plan.stdout.startswith('mgdet_nano_staged.py: 20 epochs')
    assert f'configs lie in {built}/mgdet_plugin/.mim/configs' in call('train', 'nothing').stderr
    benchmark = call('benchmark')
    assert benchmark.returncode == 2 and benchmark.stderr.startswith('error: the benchmarks are not installed')
