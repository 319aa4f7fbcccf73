"""Checkpoints: read without executing anything stored in them, saved whole and in plain types.

``torch.load`` defaults to ``weights_only=True``: it builds plain types and tensors and refuses every other class, so
what is saved is turned into those first. Configs stored in a checkpoint are Python source that mmengine executes; one
that is more than literals is dropped, and ``meta['config']``, which only repeats a check of the number of GPUs on
resume, always is.
"""
from __future__ import annotations

import ast
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mgdet_plugin.common.checkpoint_content import HISTORY_FIELDS, check_content, checked_new_classes
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import WRITTEN_BY, write_together

_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device)
_NOT_PLAIN = object()
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.keyword, ast.UnaryOp, ast.USub, ast.UAdd,
             ast.Load)


def load_checkpoint(path: str | Path, mmap: bool = False) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Read what the import or mmengine wrote, or a bare state dict, with torch's safe loader, onto the CPU.

    With ``mmap`` a tensor's numbers are read only when they are used, so that names and shapes come at once.

    Returns:
        Name -> tensor; and all of the file's content, of which the first is a part.

    Raises:
        UserError: It cannot be loaded safely or holds no state dict of tensors.
    """
    import mmengine.logging  # noqa: F401  its log history can be read once it is imported
    with read_safely(path):
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    check_content(content, path)
    state = content.get('state_dict', content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise UserError(f'{path} holds no state_dict of tensors; {WRITTEN_BY}')
    return state, content


@contextmanager
def read_safely(path: str | Path) -> Iterator[None]:
    """Say in one line why a checkpoint cannot be read in the block, whatever torch raises, a memory that is too small
    included; what is packed in it is refused before: it may grow to any size.

    Raises:
        UserError: It cannot be loaded safely.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                packed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise UnpicklingError(f'{packed[0][:60]!r} in it is compressed, which torch never writes')
        yield
    except UserError:
        raise
    except Exception as error:  # what a stranger's bytes make of a reader may be anything
        raise UserError(f'{path} is no checkpoint that torch can load safely ({_why(error)}); {WRITTEN_BY}') from None


def _why(error: Exception) -> str:
    """Why a file cannot be read, without torch's advice to read it all the same."""
    if isinstance(error, MemoryError):
        return 'it asks for more memory than there is'
    code = re.search(r'(?:GLOBAL|Unsupported class) (\S+)', str(error))
    if code and isinstance(error, UnpicklingError):
        return f'it names {code[1][:80]}, and nothing but tensors and plain values is read'
    lines = str(error).rpartition('WeightsUnpickler error: ')[2].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def run_of(content: Mapping[str, Any]) -> str | None:
    """Which run saved a checkpoint of this content, where it says."""
    record = content.get('mgdet')
    run = record.get('run') if isinstance(record, Mapping) else None
    return run if isinstance(run, str) else None


def new_classes_of(content: Mapping[str, Any], name: str = 'the checkpoint') -> tuple[str | int, ...]:
    """Classes that weights have rows for and have not learnt: ``meta.new_classes``, as an import writes it.

    Args:
        content: All of a checkpoint's content, see :func:`load_checkpoint`.
        name: Its path, for messages.

    Returns:
        Their names, or their places (from 0) where an import knew only their number; none of trained weights.

    Raises:
        UserError: The entry is no such list.
    """
    meta = content.get('meta')
    return checked_new_classes(meta.get('new_classes') if isinstance(meta, Mapping) else None,
                               f'{name}: meta.new_classes')


def check_checksums(path: str | Path) -> None:
    """Read a checkpoint from end to end and compare each part with its checksum, which ``torch.load`` does not.

    Raises:
        UserError: A part holds other bytes than were written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:
        raise UserError(f'{path} is damaged ({error})') from None
    if part is not None:
        raise UserError(f'{path} is damaged ({part} has another checksum than when it was written)')


def save_whole(content: Any, path: Path) -> None:
    """Save plain types and tensors, so that a process killed at any moment leaves the earlier file or the new one.

    Raises:
        UserError: It cannot be written (a full disk, no permission); an earlier file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: no folder {path.parent} can be made: {error.strerror}') from error
    write_together({path: partial(torch.save, content)})


def to_plain(value: Any, where: str = 'checkpoint') -> Any:
    """Copy a nested value into types that ``torch.load`` reads by default; ``where`` is its place, for warnings.

    Tensors are not copied. Arrays become tensors (as lists, a long log history would take minutes to read), numpy
    scalars Python numbers, a ``HistoryBuffer`` a dict of its data. An entry that has no plain form (a function, an
    object) is left out with a warning, since one such entry makes the whole file unreadable.
    """
    plain = _convert(value, where)
    return None if plain is _NOT_PLAIN else plain


def _convert(value: Any, where: str) -> Any:
    if type(value) in _PLAIN_TYPES or isinstance(value, torch.Tensor):
        return bytearray() if type(value) is bytes and not value else value  # torch refuses the call in b''
    if isinstance(value, dict):
        return _convert_dict(value, where)
    if isinstance(value, (list, tuple)):
        items = (to_plain(item, f'{where}[{index}]') for index, item in enumerate(value))
        return list(items) if isinstance(value, list) else tuple(items)
    if isinstance(value, (set, frozenset)):
        return {to_plain(item, where) for item in value}
    if isinstance(value, np.ndarray):
        return _convert_array(value, where)
    if isinstance(value, np.generic):  # before float, which np.float64 is
        return _convert(value.item(), where) if value.dtype.kind in 'biufcSU' else _leave_out(value, where)
    if isinstance(value, PurePath):
        return str(value)
    for base in (int, float, str):  # subclasses such as IntEnum
        if isinstance(value, base):
            return base.__str__(value) if base is str else base(value)
    from mmengine.logging import HistoryBuffer
    return _history_to_plain(value) if isinstance(value, HistoryBuffer) else _leave_out(value, where)


def _convert_dict(value: dict[Any, Any], where: str) -> dict[Any, Any]:
    items = [(to_plain(key), _convert(item, f'{where}[{key!r}]')) for key, item in value.items()]
    kept = [(key, item) for key, item in items if item is not _NOT_PLAIN]
    if not isinstance(value, OrderedDict):
        return Counter(dict(kept)) if isinstance(value, Counter) else dict(kept)  # a scheduler's milestones
    ordered = OrderedDict(kept)
    vars(ordered).update(to_plain(vars(value), where))  # a module's state dict carries its `_metadata` here
    return ordered


def _convert_array(value: np.ndarray, where: str) -> Any:
    if value.dtype.kind not in 'biufc':
        return to_plain(value.tolist(), where)
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder('=')))


def _leave_out(value: Any, where: str) -> Any:
    warnings.warn(f'{where} is a {type(value).__name__}, which torch.load refuses by default: left out of the '
                  'checkpoint', stacklevel=2)
    return _NOT_PLAIN


def _history_to_plain(buffer: Any) -> dict[str, Any]:
    arrays = (_convert_array(values, name) for name, values in zip(HISTORY_FIELDS, buffer.data))
    return dict(zip(HISTORY_FIELDS, (*arrays, buffer.max_length), strict=True))


def history_from_plain(value: Any) -> Any:
    """Return the ``HistoryBuffer`` of a dict that :func:`to_plain` made of one, anything else as it is."""
    if not isinstance(value, dict) or set(value) != set(HISTORY_FIELDS):
        return value
    from mmengine.logging import HistoryBuffer
    return HistoryBuffer(np.asarray(value['log_history'].cpu()), np.asarray(value['count_history'].cpu()),
                         value['max_length'])


def drop_code(checkpoint: Any) -> None:
    """Remove, in place, the configs of a loaded checkpoint that mmengine would run as code.

    ``Runner.resume`` executes ``meta['config']``; an inferencer built from a checkpoint alone executes ``cfg`` of
    the message hub's runtime info or of ``meta``. A ``cfg`` as mmengine writes it consists of literals and stays.
    """
    meta = _dict_at(checkpoint, 'meta')
    meta.pop('config', None)
    for holder in (meta, _dict_at(_dict_at(checkpoint, 'message_hub'), 'runtime_info')):
        if 'cfg' in holder and not _is_literal_config(holder['cfg']):
            del holder['cfg']
            warnings.warn('the config stored in the checkpoint holds code: left out', stacklevel=2)


def stored_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The config that mmengine stored in a checkpoint's meta, empty where there is none; nothing of it is imported."""
    text = _dict_at(content, 'meta').get('cfg')
    if not isinstance(text, str) or not _is_literal_config(text):
        return {}
    found: dict[str, Any] = {}
    exec(compile(text, 'meta.cfg', 'exec'), {'__builtins__': {'dict': dict}}, found)  # literals alone, see above
    return found


def _dict_at(holder: Any, key: str) -> dict[str, Any]:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else {}


def _is_literal_config(text: Any) -> bool:
    """Tell whether a config's source only assigns literals and ``dict(...)`` to names, and inherits from no file."""
    if not isinstance(text, str):
        return False
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(statement, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id != '_base_' for target in statement.targets)
               and _is_literal(statement.value) for statement in statements)


def _is_literal(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        plain_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
        return plain_dict and all(_is_literal(keyword.value) for keyword in node.keywords)
    return isinstance(node, _LITERALS) and all(_is_literal(child) for child in ast.iter_child_nodes(node))
