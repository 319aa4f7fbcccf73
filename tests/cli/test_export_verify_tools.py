"""The export and verify tools: exit codes, one line for bad input, nothing left behind."""
from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import save, tiny_state
from tests.support.keras_files import write_tiny

ROOT = Path(__file__).resolve().parents[2]
EXPORT, VERIFY = (ROOT / 'tools' / name for name in ('export_keras.py', 'verify_import.py'))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tiny_state(), tmp_path / 'model.pth')


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny('keras2_model5.keras', tmp_path / 'model.keras')


def run(monkeypatch: pytest.MonkeyPatch, tool: Path, *arguments: str | Path) -> int:
    """Exit code of a tool, run in this process."""
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_export_prints_a_table(tmp_path, checkpoint, monkeypatch, capsys):
    assert run(monkeypatch, EXPORT, checkpoint, tmp_path / 'a.weights.h5', '--dtype', 'float16') == 0
    printed = capsys.readouterr()
    assert 'written   a.weights.h5' in printed.out and 'float16' in printed.out and printed.err == ''
    assert run(monkeypatch, EXPORT, checkpoint, tmp_path / 'darknet53.h5', '--part', 'backbone') == 0
    assert 'a backbone: 185 layers' in capsys.readouterr().out


def test_verify_exits_with_its_verdict(tmp_path, source, checkpoint, monkeypatch, capsys):
    assert run(monkeypatch, VERIFY, source, checkpoint, '--json', tmp_path / 'v.json') == 0
    assert 'verdict   agrees' in capsys.readouterr().out
    assert json.loads((tmp_path / 'v.json').read_text())['agrees'] is True
    state = tiny_state()
    state['bbox_head.predict_convs.0.bias'][0] += 1
    assert run(monkeypatch, VERIFY, source, save(state, checkpoint)) == 1
    printed = capsys.readouterr()
    assert 'differs   bbox_head.predict_convs.0.bias' in printed.out and 'does NOT agree' in printed.out
    assert printed.err == ''


@pytest.mark.parametrize('tool, arguments, cause', [
    (EXPORT, ['{ckpt}', '{out}.pth'], 'must end in .h5, .weights.h5 or .keras'),
    (EXPORT, ['absent.pth', '{out}.h5'], 'absent.pth is not there'),
    (EXPORT, ['{src}', '{out}.h5'], 'no checkpoint that torch can load safely'),
    (EXPORT, ['{ckpt}'], 'required: OUT'),
    (EXPORT, ['{ckpt}', '{out}.h5', '--dtype', 'int8'], "invalid choice: 'int8'"),
    (EXPORT, ['{ckpt}', '{out}.h5', '--part', 'neck'], "invalid choice: 'neck'"),
    (EXPORT, ['{ckpt}', '{out}.h5', '--unknown'], 'unrecognized arguments: --unknown'),
    (VERIFY, ['absent.h5', '{ckpt}', '--json', '{out}.json'], 'absent.h5 does not exist'),
    (VERIFY, ['{src}', 'absent.pth', '--json', '{out}.json'], 'absent.pth is not there'),
    (VERIFY, ['{ckpt}', '{ckpt}', '--json', '{out}.json'], 'PyTorch checkpoint'),
    (VERIFY, ['{src}', '{src}', '--json', '{out}.json'], 'no checkpoint that torch can load safely'),
    (VERIFY, ['{src}', '{ckpt}', '--with-keras'], 'unrecognized arguments: --with-keras'),
    (VERIFY, ['{src}'], 'required: CKPT'),
])
def test_bad_input_is_one_line_and_exit_2(tmp_path, source, checkpoint, monkeypatch, capsys, tool, arguments, cause):
    before = sorted(tmp_path.iterdir())
    filled = [argument.replace('{src}', str(source)).replace('{ckpt}', str(checkpoint)).replace(
        '{out}', str(tmp_path / 'out')) for argument in arguments]
    assert run(monkeypatch, tool, *filled) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ') and cause in lines[0] and printed.out == ''
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize('tool', [EXPORT, VERIFY])
def test_runs_as_a_program(tmp_path, tool):
    done = subprocess.run([sys.executable, tool, tmp_path / 'a', tmp_path / 'b.h5'], capture_output=True, text=True,
                          check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 2 and done.stdout == '' and done.stderr.startswith('error: ')
    assert done.stderr.count('\n') == 1
