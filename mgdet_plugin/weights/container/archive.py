"""From a path to an opened weights file: plain HDF5, the weights inside a ``.keras`` archive, or Darknet's own.

The HDF5 library sees the file only in a process of its own (:mod:`.reader_process`); arrays are read here, from the
places that process lists.
"""
from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path

from mgdet_plugin.common import weights_path
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.weights_path import SAVE_WEIGHTS
from mgdet_plugin.weights.container.darknet_file import DarknetFile, looks_like_darknet
from mgdet_plugin.weights.container.file_window import Digest, FileWindow
from mgdet_plugin.weights.container.reader_process import ListingProcess
from mgdet_plugin.weights.container.stored_array import quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.container.zip_member import HDF5_MAGIC, member_window

ZIP_MAGIC = b'PK\x03\x04'
GIVE_PATH = 'give the path of a Keras weights file (.h5, .weights.h5 or .keras) or of Darknet weights'


# Formats that are often given in place of a Keras weights file: what they are, and what to save instead.
SAVED_MODEL = f'a {weights_path.SAVED_MODEL}'
CHECKPOINT = f'a TensorFlow checkpoint (.index and .data files); {SAVE_WEIGHTS}'
SHARDS = f'the list of a sharded Keras save (.weights.json), its weights lie in other files; {SAVE_WEIGHTS}'
ONNX = 'an ONNX model, whose layers have other names and another order; give the Keras file it was made from'
TFLITE = 'a TensorFlow Lite model, which does not keep all weights of training; give the Keras file it was made from'
TORCH = 'a pickle, as old PyTorch files are, and is never read; a checkpoint of this package needs no import'
SAFETENSORS = f'a safetensors file; {SAVE_WEIGHTS}'
PACKED = 'a packed file (gzip); unpack it first'


@contextmanager
def open_weights(path: str | Path) -> Iterator[WeightsFile]:
    """Open a Keras weights file.

    Args:
        path: ``.h5``, ``.weights.h5``, ``.keras`` or Darknet file; told apart by content, not by name.

    Raises:
        UserError: The path is no regular readable file, or its content is none of these.
    """
    name = str(path)
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        whole = FileWindow(stream, 0, size)
        start = whole.read(40) or b''
        if not start.startswith((ZIP_MAGIC, HDF5_MAGIC)):
            if not looks_like_darknet(start, size):
                what = foreign_content(Path(path).name, start)
                raise UserError(f'{name} is {what}' if what else
                                f'{name} is not a Keras weights file: {describe_content(start, size)}')
            with Digest(FileWindow(stream, 0, size)) as digest:
                yield DarknetFile(whole, name, digest)
            return
        window, container = whole, 'HDF5'
        if start.startswith(ZIP_MAGIC):
            window, container = member_window(whole, name), '.keras archive'
        check_length(window, name)
        with closing(ListingProcess(window, name)) as process, Digest(FileWindow(stream, 0, size)) as digest:
            yield WeightsFile(window, name, container, size, process.result(), digest)


def check_length(window: FileWindow, name: str) -> None:
    """Refuse HDF5 content that is shorter than it states, as a broken download is (superblocks: section II)."""
    window.seek(0)
    start = (window.read(48) or b'').ljust(48, b'\0')
    at = {0: 40, 1: 44}.get(start[8], 28)
    stated = int.from_bytes(start[at:at + 8], 'little')
    if window.size < max(stated, 48):
        raise UserError(f'{name}: damaged or truncated HDF5 ({window.size:,} bytes are there of {stated:,} it states); '
                        'copy or download the file again')


def open_regular(path: str | Path) -> FileIO:
    """Open a file for reading, having made sure that it is one."""
    try:
        what = foreign_path(Path(path))
        if what is not None:
            raise UserError(f'{path} is {what}')
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):  # opening anything else may wait for ever
            return FileIO(path)
    except FileNotFoundError as error:
        raise UserError(f'{path} does not exist; {GIVE_PATH}') from error
    except UserError:
        raise
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UserError(f'{path} cannot be opened: {cause}; {GIVE_PATH}') from error
    raise UserError(f'{path} is {"a directory" if stat.S_ISDIR(mode) else "not a regular file"}; {GIVE_PATH}')


def describe_content(start: bytes, size: int) -> str:
    """What a file that is neither HDF5 nor zip seems to be, from its first bytes."""
    if not size:
        return 'it is empty (0 bytes)'
    if all(byte in b'\t\r\n' or byte >= 32 for byte in start):
        text = start.decode(errors='replace').split('\n', maxsplit=1)[0]
        return f'it is text beginning {quoted(text)} (an error page or a pointer saved in place of the file?)'
    return f'it begins with the bytes {start[:8].hex(" ")}; expected HDF5 (.h5, .weights.h5), .keras or Darknet weights'


def foreign_path(path: Path) -> str | None:
    """What a path that is no regular file is and what to give instead, by what lies at it or beside it."""
    if path.is_dir():
        return SAVED_MODEL if any((path / name).is_file() for name in weights_path.SAVED_MODEL_FILES) else None
    return CHECKPOINT if path.with_name(f'{path.name}.index').is_file() else None


def foreign_content(name: str, start: bytes) -> str | None:
    """What a file that is neither HDF5 nor an archive is and what to give instead, by its name and first 40 bytes."""
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
