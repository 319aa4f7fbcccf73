"""What needs no model is refused without the import of what a model needs, which takes seconds."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.keras_files import write_tiny

CODE = """
import sys
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.exporter import export_keras
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.verify import verify_import
try:
    {call}
except UserError as error:
    print(error)
print([name for name in ('torch', 'mmdet', 'mmengine', 'mmcv', 'matplotlib', 'keras') if name in sys.modules])
"""


@pytest.mark.parametrize('call, cause', [
    ("import_keras('absent.h5', 'out.pth')", 'absent.h5 does not exist'),
    ("import_keras('text.h5', 'out.pth')", "text beginning 'not found'"),
    ("import_keras('damaged.h5', 'out.pth')", 'damaged or truncated HDF5'),
    ("import_keras('model.h5', 'out.pth', part='neck')", "got 'neck'"),
    ("import_keras('model.h5', 'out.pth', config='absent.py')", 'config absent.py does not exist'),
    ("import_keras('model.h5', 'out.pth', classes='0')", '--classes 0: the number of classes must be'),
    ("import_keras('model.h5', 'out.pth', classes='absent.txt')", '--classes absent.txt: neither'),
    ("import_keras('model.h5', 'out.pth', add_classes='absent.txt')", '--add-classes absent.txt: neither'),
    ("import_keras('old.pth', 'out.pth')", 'old.pth is a checkpoint, which needs no import'),
    ("import_keras('model.h5', 'absent/out.pth')", 'there is no folder'),
    ("verify_import('absent.h5', 'text.h5')", 'absent.h5 does not exist'),
    ("verify_import('text.h5', 'text.h5')", "text beginning 'not found'"),
    ("verify_import('model.h5', 'absent.pth')", 'the checkpoint absent.pth is not there'),
    ("export_keras('absent.pth', 'out.h5')", 'the checkpoint absent.pth is not there'),
    ("export_keras('text.h5', 'out.h5')", 'text.h5 is no checkpoint that torch can load safely'),
    ("export_keras('text.h5', 'out.bin')", 'must end in .h5, .weights.h5 or .keras'),
])
def test_refusals_that_need_no_model_import_none(tmp_path: Path, call: str, cause: str):
    (tmp_path / 'old.pth').write_bytes(b'PK')
    (tmp_path / 'text.h5').write_text('not found')
    source = write_tiny('keras3_model5.weights.h5', tmp_path / 'model.h5')
    (tmp_path / 'damaged.h5').write_bytes(source.read_bytes()[:5000])
    done = subprocess.run([sys.executable, '-c', CODE.format(call=call)], cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    line, modules = done.stdout.splitlines()
    assert cause in line and modules == '[]'
