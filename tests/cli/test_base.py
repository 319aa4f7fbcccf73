"""Where mmdet, mmengine or mmcv is not installed, or one of another base, a command says so in one line."""
import subprocess
import sys

import pytest

from mgdet_plugin.common.errors import user_errors_to_exit
from tests.support.fork_server import environment

WITHOUT = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in {gone} else find(name, *rest)
from mgdet_plugin.cli import main
main()
"""
INSTEAD = ('; install one base, all three of its parts: pip install mmengine==0.10.7 mmdet==3.3.0 mmcv-lite==2.1.0, or '
           'pip install onedl-mmengine onedl-mmdetection onedl-mmcv (docs/install.md)\n')


@pytest.mark.parametrize(('gone', 'missed', 'words'), [
    (('mmdet', 'mmengine', 'mmcv'), 'mmengine', ('plan', 'mgdet_nano_staged')),
    (('mmdet', 'mmengine', 'mmcv'), 'mmdet', ('mmdet_tool', 'analysis_tools/get_flops', 'mgdet_nano_staged')),
    (('mmcv', ), 'mmcv', ('doctor', 'mgdet_nano_staged'))])
def test_a_base_that_is_not_there_is_one_line(gone, missed, words):
    done = subprocess.run([sys.executable, '-c', WITHOUT.format(gone=gone), *words], capture_output=True, text=True,
                          check=False, env=environment(), timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', f'error: {missed} is not installed{INSTEAD}')


def test_parts_of_two_bases_are_one_line(capsys):
    """mmdet 3.3.0 asserts the version of mmcv when it is imported; what others assert keeps its traceback."""
    said = 'MMCV==2.3.6 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
    with pytest.raises(SystemExit) as ended, user_errors_to_exit():
        exec(compile(f'assert False, {said!r}', '/site-packages/mmdet/__init__.py', 'exec'))
    assert ended.value.code == 2 and capsys.readouterr().err == f'error: mmdet cannot be imported: {said}{INSTEAD}'
    with pytest.raises(AssertionError), user_errors_to_exit():
        exec(compile('assert False', '/site-packages/mmdet/apis/train.py', 'exec'))
