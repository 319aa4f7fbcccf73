"""The two doors to every command, and what is answered without importing anything heavy."""
import argparse
import runpy
import subprocess
import sys
from importlib import import_module

import pytest

import mgdet_plugin
from mgdet_plugin.cli import COMMANDS
from mgdet_plugin.cli.parser import cfg_options
from mgdet_plugin.cli.training.test import test_parser as parser_of_test
from mgdet_plugin.cli.training.train import train_parser
from mgdet_plugin.common.resources import mmdet_script
from tests.conftest import ROOT
from tests.support.fork_server import environment

HEAVY = ('torch', 'mmdet', 'mmengine', 'matplotlib', 'numpy')
CONSOLE = 'from mgdet_plugin.cli import main; main()'
LIGHT = f"""
import atexit, sys
atexit.register(lambda: print('loaded', *(name for name in {HEAVY} if name in sys.modules)))
{CONSOLE}
"""


def mgdet(*arguments, code=LIGHT, cwd=None):
    """Call the console script in a process of its own."""
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True,
                          check=False, env=environment(), cwd=cwd, timeout=200)


def test_every_command_has_both_doors():
    modules = {path.stem for path in (ROOT / 'mgdet_plugin/cli').glob('*/*.py')} - {'__init__', 'demo'}
    assert modules == {path.stem for path in (ROOT / 'tools').glob('*.py')} == set(COMMANDS)
    for command in COMMANDS:
        assert f"run('{command}')" in (ROOT / f'tools/{command}.py').read_text()


@pytest.mark.parametrize('command', [*COMMANDS, None])
def test_help_is_light(command):
    done = mgdet(*filter(None, [command]), '--help')
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout.startswith(f'usage: mgdet {command or "COMMAND"} ') and done.stdout.endswith('\nloaded\n')
    if command is None:
        assert [line.split()[0] for line in done.stdout.splitlines()[2:-1]] == list(COMMANDS)


def test_tools_are_the_same_commands():
    by_tool = subprocess.run([sys.executable, ROOT / 'tools/plan.py', '--help'], capture_output=True, text=True,
                             check=True, env=environment())
    assert by_tool.stdout == mgdet('plan', '--help', code=CONSOLE).stdout


@pytest.mark.parametrize(('arguments', 'line'), [
    (['plam'], "there is no command 'plam'; the nearest name is plan; mgdet --help lists all"),
    (['???'], "there is no command '???'; mgdet --help lists all"),
    (['train', 'mgdet_nano_stagd'], 'the config mgdet_nano_stagd is not there; the nearest name is mgdet_nano_staged'),
    (['train', 'mgdet_nano_staged', '--cfg-options', 'a'], '--cfg-options takes entries of the form key=value'),
    (['test', 'mgdet_nano_staged', 'no.pth'], 'the weights no.pth are not there; import your Keras file'),
    (['plan', 'mgdet_nano_staged', '--colour'], 'unrecognized arguments: --colour'),
    (['compare', 'mgdet_nano_staged', 'no.pth', 'no.pth'], 'the weights no.pth are not there'),
    (['draw', 'mgdet_nano_staged', 'model.h5', 'x.png'], 'model.h5 is a Keras file; import it first'),
    (['detect', 'nowhere.jpg', '--weights', __file__], 'the source nowhere.jpg is not there'),
    (['detect', __file__, '--weights', 'no.pth'], "the weights must be a file that is there, got 'no.pth'"),
    (['detect', '0', '--weights', __file__, '--score-thr', 'a'], '--score-thr takes 0.5, person=0.6,dog=0.4 or both'),
    (['complete_labels', 'mgdet_nano_staged', 'no.pth', 'a.json', 'b.json'], 'the weights no.pth are not there'),
    (['doctor', 'nowhere'], 'the config nowhere is not there'),
    (['anchors', 'mgdet_nano_staged', '--metric', 'giou'], "argument --metric: invalid choice: 'giou'"),
    (['anchors', 'mgdet_nano_staged', '--measure', 'no.pth'], 'the weights no.pth are not there'),
    (['first_loss', 'scratch/nothing.py', 'no.pth'], 'the config scratch/nothing.py is not there'),
    (['blend_weights', 'a.pth', 'b.pth', '--pick', 'old'], "argument --pick: invalid choice: 'old'"),
    (['mmdet_tool', 'nothing'], "mmdet ships no tool 'nothing'; it ships analysis_tools/")])
def test_a_refusal_is_one_line_and_light(arguments, line, tmp_path):
    done = mgdet(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == 'loaded\n'
    assert done.stderr.startswith('error: ' + line) and done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('arguments', [['nowhere'], ['nowhere', '--out', 'x']])
def test_a_folder_that_is_no_run_is_refused_without_matplotlib(arguments, tmp_path):
    done = mgdet('plot_run', *arguments, cwd=tmp_path)
    assert done.returncode == 2 and 'there is no work folder nowhere' in done.stderr
    assert not {'torch', 'mmdet', 'matplotlib'} & set(done.stdout.split())


@pytest.mark.parametrize(('command', 'make_parser'), [('train', train_parser), ('test', parser_of_test)])
def test_options_are_mmdets(command, make_parser, monkeypatch):
    """mmdet's script parses what we hand on: every option of its, with its meaning, and no other but ours."""
    seen = []
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', lambda self: seen.append(self) or argparse.Namespace(
        local_rank=0))
    runpy.run_path(str(mmdet_script(command)), run_name=command)['parse_args']()

    def options(parser):
        return {action.dest: (tuple(action.option_strings), action.nargs, action.const, action.default, action.type,
                              action.choices and tuple(action.choices), action.required)
                for action in parser._actions if action.dest != 'help'}

    ours = options(make_parser())
    assert ours.pop('demo')[0] == ('--demo',)
    assert ours.pop('verbose')[0] == ('--verbose',)
    if command == 'train':
        assert [ours.pop(each)[0] for each in ('quiet', 'more_epochs', 'batch', 'hours')] == [
            ('--quiet',), ('--more-epochs',), ('--batch',), ('--hours',)]
    theirs = {key: tuple(None if part is str else part for part in value) for key, value in options(seen[0]).items()}
    assert ours == theirs


def test_what_is_handed_on_is_parsed_to_the_same():
    parser = train_parser()
    given = ['--resume', '--work', 'w d', '--cfg-options', 'a=1', 'b=2', '--launcher=pytorch', 'c.py', '--demo']
    words = parser.command_line(parser.parse_args(given))
    assert words == ['c.py', '--work-dir=w d', '--cfg-options', 'a=1', 'b=2', '--launcher=pytorch', '--resume=auto',
                     '--demo']
    assert parser.parse_args(words) == parser.parse_args(given)
    assert cfg_options(['a=1', 'b=[1,2]', 'c=(x,y)']) == dict(a=1, b=[1, 2], c=('x', 'y')) and cfg_options(None) == {}


def test_the_literals_of_the_parser_are_the_package_s():
    said = import_module('benchmarks.benchmark')
    help_text = mgdet('benchmark', '--help', code=CONSOLE).stdout
    assert all(name in help_text for name in (*said.SUITES, *said.ROWS, *said.LEARNING))


def test_the_public_face_is_lazy_and_whole():
    code = f"""
import sys, mgdet_plugin
from mgdet_plugin import UserError
assert not [name for name in {HEAVY} if name in sys.modules]
print(*dir(mgdet_plugin))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment())
    names = {'import_keras', 'export_keras', 'verify_import', 'Plan', 'check_run', 'blend_weights', 'UserError'}
    assert names <= set(done.stdout.split())
    assert all(callable(getattr(mgdet_plugin, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mgdet_plugin.nothing  # noqa: B018
