"""The import tool's contract: exit 0 and a table, or exit 2, one line and no file."""
from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.keras_files import TINY_OPTIONS, write_tiny

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'import_keras.py'
OPTIONS = [f'{key}="{value}"' if isinstance(value, tuple) else f'{key}={value}' for key, value in TINY_OPTIONS.items()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny('keras2_model5.keras', tmp_path / 'model.keras')


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit code of the tool, run in this process."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_writes_checkpoint_and_report_and_prints_a_table(tmp_path, source, monkeypatch, capsys):
    out, report = tmp_path / 'out.pth', tmp_path / 'r.json'
    assert run(monkeypatch, source, out, '--classes', '3', '--report', report, '--cfg-options', *OPTIONS) == 0
    assert torch.load(out)['state_dict']['bbox_head.predict_convs.0.bias'].shape == (11,)
    assert report.is_file()
    printed = capsys.readouterr().out
    assert 'model.keras' in printed and '4 in the file, 3 written' in printed


@pytest.mark.parametrize('arguments, cause', [
    (['{source}', '{out}', '--cfg-options', *OPTIONS, 'model.bbox_head.num_classes=9'], '4 classes, the config has 9'),
    (['{source}', '{out}', '--classes', '0'], '--classes 0'),
    (['{source}', '{out}', '--classes', '-1'], '--classes -1'),
    (['absent.h5', '{out}'], 'absent.h5 does not exist'),
    (['{source}'], 'required: OUT.pth'),
    (['{source}', '{out}', '--part', 'neck'], "invalid choice: 'neck'"),
    (['{source}', '{out}', '--cfg-options', 'model'], 'key=value'),
    (['{source}', '{out}', '--unknown'], 'unrecognized arguments: --unknown'),
])
def test_bad_input_is_one_line_and_exit_2(tmp_path, source, monkeypatch, capsys, arguments, cause):
    out = tmp_path / 'out.pth'
    filled = [argument.replace('{source}', str(source)).replace('{out}', str(out)) for argument in arguments]
    assert run(monkeypatch, *filled) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ') and cause in lines[0]
    assert not out.exists()


def test_runs_as_a_program(tmp_path):
    (tmp_path / 'a.h5').write_text('not found')
    done = subprocess.run([sys.executable, TOOL, tmp_path / 'a.h5', tmp_path / 'out.pth'], capture_output=True,
                          text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert "text beginning 'not found'" in done.stderr
