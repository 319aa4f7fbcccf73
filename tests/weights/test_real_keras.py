"""Files that Keras itself writes, in every format it has: imported bit for bit, with Keras' outputs."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.keras_versions import WRITERS, Writer, compare

pytestmark = pytest.mark.skipif(importlib.util.find_spec('keras') is None,
                                reason="Keras is not installed: pip install 'mgdet[keras]'")
TOLERANCE = 1e-4
# Keras writes bfloat16 into .h5 as bytes without a type, and cannot load that file itself.
REFUSED = {'bfloat16.h5': 'opaque'}


@pytest.mark.parametrize('write', WRITERS, ids=lambda write: write.__name__)
def test_imports_what_keras_writes(tmp_path: Path, write: Callable[[Writer], None]):
    writer = Writer(tmp_path)
    write(writer)
    writer.finish()
    rows = {row['file']: row for row in compare(tmp_path)}
    print({(row['keras'], file): row.get('error') for file, row in rows.items()})
    assert [row for row in rows.values() if 'failed' in row] == []
    refused = {file: row['refused'] for file, row in rows.items() if 'refused' in row}
    assert refused.keys() == REFUSED.keys() & rows.keys()
    assert all(REFUSED[file] in line for file, line in refused.items())
    imported = [row for file, row in rows.items() if file not in refused]
    assert len(imported) >= 3
    for row in imported:
        assert row['tensors'] == (336 if row['part'] == 'model' else 260)
        assert row['equal'] and row['error'] < TOLERANCE, row['file']
