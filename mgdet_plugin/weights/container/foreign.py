"""Formats that are often given in place of a Keras weights file: what they are, and what to save instead."""
from __future__ import annotations

from pathlib import Path

SAVE_WEIGHTS = "load it in Keras and save one file with model.save_weights('NAME.weights.h5')"

SAVED_MODEL = f'a TensorFlow SavedModel; {SAVE_WEIGHTS}'
CHECKPOINT = f'a TensorFlow checkpoint (.index and .data files); {SAVE_WEIGHTS}'
SHARDS = f'the list of a sharded Keras save (.weights.json), its weights lie in other files; {SAVE_WEIGHTS}'
ONNX = 'an ONNX model, whose layers have other names and another order; give the Keras file it was made from'
TFLITE = 'a TensorFlow Lite model, which does not keep all weights of training; give the Keras file it was made from'
TORCH = 'a pickle, as old PyTorch files are, and is never read; a checkpoint of this package needs no import'
SAFETENSORS = f'a safetensors file; {SAVE_WEIGHTS}'
PACKED = 'a packed file (gzip); unpack it first'


def foreign_path(path: Path) -> str | None:
    """What a path that is no regular file is, by what lies at it or beside it.

    Args:
        path: A directory, or a path at which nothing lies.

    Returns:
        What it is and what to give instead, None where nothing is known.
    """
    if path.is_dir():
        return SAVED_MODEL if any((path / name).is_file() for name in ('saved_model.pb', 'keras_metadata.pb')) else None
    return CHECKPOINT if path.with_name(f'{path.name}.index').is_file() else None


def foreign_content(name: str, start: bytes) -> str | None:
    """What a file is that is neither HDF5 nor an archive.

    Args:
        name: Name of the file.
        start: Its first bytes, at least 40 where it has so many.

    Returns:
        What it is and what to give instead, None where nothing is known.
    """
    lower = name.lower()
    if lower.endswith(('saved_model.pb', 'keras_metadata.pb')):
        return SAVED_MODEL
    if lower.endswith('.index') or '.data-0' in lower or start.startswith(b'model_checkpoint_path:'):
        return CHECKPOINT
    if lower.endswith('.json') and (b'"weight_map"' in start or lower.endswith('.weights.json')):
        return SHARDS
    if start[4:8] == b'TFL3':
        return TFLITE
    if lower.endswith('.onnx') or (start[:1] == b'\x08' and start[2:3] == b'\x12'):  # version, then the producer
        return ONNX
    if start.startswith(b'\x80') and start[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):  # pickle, of old torch files
        return TORCH
    if start[8:10] in (b'{"', b'{ ') and int.from_bytes(start[:8], 'little') < 2 ** 32:
        return SAFETENSORS
    return PACKED if start.startswith(b'\x1f\x8b') else None
