"""The fork server of the tests: what it starts is a process like any other."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mgdet_plugin.compat.launch import has_accelerator
from tests.support.fork_server import environment, shared_server

SAYS = """import json, os, random, sys, numpy
print(json.dumps(dict(argv=sys.argv, cwd=os.getcwd(), value=os.environ.get('VALUE'), pid=os.getpid(), path=sys.path[0],
                      stdin=sys.stdin.read(), name=__name__, drawn=[random.random(), numpy.random.rand()],
                      forked='mmdet' in sys.modules)))
print('to standard error', file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / 'says.py').write_text(SAYS)
    return tmp_path / 'says.py'


def test_it_has_its_own_arguments_folder_environment_and_output(script, tmp_path, monkeypatch):
    monkeypatch.setenv('VALUE', 'mine')
    one, other = (shared_server().run([script, 'a', tmp_path], tmp_path, 60) for _ in range(2))
    assert (one.returncode, one.stderr) == (0, 'to standard error\n')
    said, again = (json.loads(each.stdout) for each in (one, other))
    assert said['argv'] == [str(script), 'a', str(tmp_path)] and said['cwd'] == said['path'] == str(tmp_path)
    assert (said['value'], said['stdin'], said['name']) == ('mine', '', '__main__')
    assert said['forked'] != has_accelerator()
    assert said['pid'] not in (os.getpid(), again['pid'])
    assert not {*said['drawn']} & {*again['drawn']}


@pytest.mark.parametrize('name', ['OMP_NUM_THREADS', 'MPLBACKEND', 'PYTHONHASHSEED'])
def test_variables_that_are_read_at_the_start_start_an_interpreter(script, tmp_path, monkeypatch, name):
    shared_server()
    monkeypatch.setenv(name, '3')
    assert '"forked": false' in shared_server().run([script], tmp_path, 60).stdout


@pytest.mark.parametrize(('code', 'expected', 'said'), [
    ('import sys; sys.exit(3)', 3, ''), ('import sys; sys.exit("why")', 1, 'why'), ('1 / 0', 1, 'ZeroDivisionError'),
    ('import os; os.kill(os.getpid(), 9)', -9, ''),
    ('import atexit, sys; atexit.register(print, "at the end", file=sys.stderr)', 0, 'at the end')])
def test_it_ends_as_an_interpreter_does(tmp_path, code, expected, said):
    (tmp_path / 'ends.py').write_text(code)
    done = shared_server().run([tmp_path / 'ends.py'], tmp_path, 60)
    assert done.returncode == expected and said in done.stderr


def test_what_takes_too_long_is_killed(tmp_path):
    (tmp_path / 'long.py').write_text('import time; print("begun", flush=True); time.sleep(60)')
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        shared_server().run([tmp_path / 'long.py'], tmp_path, 0.5)
    assert time.monotonic() < began + 30


def test_signals_reach_it(tmp_path):
    (tmp_path / 'waits.py').write_text('open("there", "w"); import time; time.sleep(60)')
    process = shared_server().start([tmp_path / 'waits.py'], tmp_path, tmp_path / 'said', env=environment())
    while not (tmp_path / 'there').exists():
        time.sleep(0.01)
    shared_server().signal(process, signal.SIGTERM)
    assert shared_server().wait(process, 30) == -signal.SIGTERM
