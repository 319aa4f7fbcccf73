"""How a command ends that is interrupted, or whose output nobody reads any more."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
import mgdet_plugin.cli as cli
def command(arguments):
    if arguments == ['pipe']:
        for _ in range(100_000):
            print('a line')
    if arguments == ['launched']:
        from mgdet_plugin.common.interruption import Interrupted
        raise Interrupted('after iteration 5 of 8')
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except:  # as mmengine's formatter of configs does
        raise SyntaxError('Failed to format the config file')
class Module:
    draw_command = staticmethod(command)
cli._module = lambda name: Module
cli.run('draw')
"""


def call(argument: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', CODE, argument], text=True, stderr=subprocess.PIPE, **options)


def test_an_interruption_is_one_line_whatever_it_became() -> None:
    process = call('a.py')
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said.splitlines() == ['', 'interrupted; to go on: python tools/draw.py a.py']


def test_the_process_that_was_not_asked_ends_as_the_one_that_was() -> None:
    """Of several processes one gets the signal, and all end after the same step."""
    process = call('launched')
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines() == [
        '', 'interrupted after iteration 5 of 8; to go on: python tools/draw.py launched']


def test_a_reader_that_has_gone() -> None:
    reading, writing = os.pipe()
    process = call('pipe', stdout=writing)
    os.close(writing)
    os.close(reading)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + signal.SIGPIPE, '')


def test_training_goes_on_by_resuming() -> None:
    from mgdet_plugin.cli.training.train import goes_on
    words = goes_on(['a.py', '--work-dir', 'd', '--resume', 'd/epoch_1.pth', '--amp', '--cfg-options', 'a=1', 'b=2'])
    assert words == ['a.py', '--work-dir=d', '--cfg-options', 'a=1', 'b=2', '--amp', '--resume']


@pytest.mark.parametrize('inherited', ['SIG_DFL', 'SIG_IGN'])
def test_a_pool_of_processes_ends_where_signals_are_taken_note_of(inherited: str) -> None:
    """Its processes are ended by SIGTERM; they would wait for ever if they took the parent's ways over."""
    code = f"""
import signal
signal.signal(signal.SIGTERM, signal.{inherited})
from multiprocessing import get_context
from mgdet_plugin.common.interruption import ASKED
for quiet in (ASKED.listen, ASKED.ignore):
    quiet()
    with get_context('fork').Pool(2) as pool:
        assert pool.map(abs, [-1]) == [1]
    pool.join()
"""
    assert subprocess.run([sys.executable, '-c', code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize('quiet', ['listen', 'ignore'])
def test_a_signal_to_a_process_that_is_being_forked_ends_it(quiet: str) -> None:
    """It comes before the process has set its ways, as where a pool ends at once on a busy machine."""
    code = f"""
import os, signal, time
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from mgdet_plugin.common.interruption import ASKED
ASKED.listen()
ASKED.{quiet}()
child = os.fork()
if not child:
    time.sleep(30)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""
    assert subprocess.run([sys.executable, '-c', code], check=False, timeout=60).returncode == 0


def test_ctrl_c_as_a_process_is_forked_is_not_lost() -> None:
    code = """
import os, signal, time
os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))  # called last
from mgdet_plugin.common.interruption import ASKED
ASKED.listen()
try:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(5)
except KeyboardInterrupt:
    os._exit(ASKED.number)
"""
    assert subprocess.run([sys.executable, '-c', code], check=False, timeout=60).returncode == signal.SIGINT
