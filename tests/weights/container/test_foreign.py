"""What is often given in place of a Keras file is named, with what to save instead."""
from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import pytest

from mgdet_plugin.weights.container import archive
from mgdet_plugin.weights.container.archive import foreign_content, foreign_path
from tests.support.keras_files import tiny_bytes


def test_names_folders_and_prefixes(tmp_path: Path):
    (tmp_path / 'saved').mkdir()
    assert foreign_path(tmp_path / 'saved') is None
    (tmp_path / 'saved' / 'saved_model.pb').write_bytes(b'\x08\x01')
    assert foreign_path(tmp_path / 'saved') == archive.SAVED_MODEL
    assert foreign_path(tmp_path / 'ckpt-3') is None
    (tmp_path / 'ckpt-3.index').write_bytes(bytes(8))
    assert foreign_path(tmp_path / 'ckpt-3') == archive.CHECKPOINT


HEADER = json.dumps(dict(kernel=dict(dtype='F32', shape=[1], data_offsets=[0, 4]))).encode()


@pytest.mark.parametrize('name, start, expected', [
    ('saved_model.pb', b'\x08\x01\x12\x9d', archive.SAVED_MODEL),
    ('ckpt-3.index', b'\x00\x00\x12\x08\x01', archive.CHECKPOINT),
    ('ckpt-3.data-00000-of-00001', bytes(40), archive.CHECKPOINT),
    ('checkpoint', b'model_checkpoint_path: "ckpt-3"\n', archive.CHECKPOINT),
    ('m.weights.json', b'{\n    "metadata": {\n        "total_size": ', archive.SHARDS),
    ('m.json', b'{"weight_map": {}}', archive.SHARDS),
    ('m.onnx', b'', archive.ONNX),
    ('m.h5', b'\x08\x08\x12\x07pytorch', archive.ONNX),
    ('m.h5', b'\x1c\x00\x00\x00TFL3\x14\x00', archive.TFLITE),
    ('m.h5', pickle.dumps([1], 2), archive.TORCH),
    ('m.h5', struct.pack('<Q', len(HEADER)) + HEADER, archive.SAFETENSORS),
    ('m.h5.gz', gzip.compress(b'text', mtime=0), archive.PACKED),
    ('m.h5', b'<!DOCTYPE html>', None),
    ('m.json', b'{"class_name": "Functional"}', None),
    ('m.h5', b'', None),
    ('m.h5', bytes(range(40)), None),
])
def test_names_files(name, start, expected):
    assert foreign_content(name, start[:40]) == expected


def test_knows_no_foreign_format_in_a_keras_file():
    assert foreign_content('m.h5', tiny_bytes('keras2_model5.weights.h5')[:40]) is None


def test_lines_say_what_to_do():
    for line in (value for key, value in vars(archive).items() if key.isupper() and isinstance(value, str)):
        assert '\n' not in line and ('save' in line or 'give' in line or 'unpack' in line or 'needs no import' in line)
