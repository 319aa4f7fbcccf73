"""Checkpoints of mmengine that are whole, that torch reads back by default, and whose reading runs no code.

``torch.load`` defaults to ``weights_only=True``: it builds plain types and tensors and refuses every other class.
mmengine 0.10.7 writes ``HistoryBuffer`` objects, numpy arrays and numpy scalars, so nothing it saves can be resumed.
:mod:`mgdet_plugin.compat` applies the ``patch_*`` functions to mmengine's modules:

* **saving** turns the whole checkpoint into plain types, readable without this package, and puts it in the place of
  an earlier file only once it is whole. An older checkpoint is removed after the new one is there, not before;
* **loading** rebuilds the log history from them;
* **checkpoints saved without this package** load through an allow-list of the few names they hold. Not one of those
  names leads to code of numpy or to ``getattr``: each is bound to a function or class of this module that accepts the
  data such a file really holds and nothing else. Real ``numpy.dtype`` and ``ndarray`` state would not do: a forged
  dtype turns bytes of the file into object pointers;
* **configs stored in a checkpoint** are Python source that mmengine executes. One that is more than literals is
  dropped, and ``meta['config']``, which only repeats a check of the number of GPUs on resume, always is.
"""
from __future__ import annotations

import ast
import io
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path, PurePath
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together

_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device)
_NOT_PLAIN = object()
_HISTORY_FIELDS = ('log_history', 'count_history', 'max_length')
_NUMERIC_CODES = frozenset(['b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'])
_STATISTICS = ('min', 'max', 'current', 'mean')
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.keyword, ast.UnaryOp, ast.USub, ast.UAdd,
             ast.Load)


def to_plain(value: Any, where: str = 'checkpoint') -> Any:
    """Copy a nested value into types that ``torch.load`` reads by default.

    Tensors are not copied. Arrays become tensors (as lists, a long log history would take minutes to read), numpy
    scalars Python numbers, a ``HistoryBuffer`` a dict of its data. An entry that has no plain form (a function, an
    object) is left out with a warning, since one such entry makes the whole file unreadable.

    Args:
        value: What is to be saved.
        where: Its place in the checkpoint, for the warning.
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
    return _history_to_plain(value) if _is_history(value) else _leave_out(value, where)


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


def _is_history(value: Any) -> bool:
    from mmengine.logging.history_buffer import HistoryBuffer
    return isinstance(value, HistoryBuffer)


def _history_to_plain(buffer: Any) -> dict[str, Any]:
    log_history, count_history = buffer.data
    values = (_convert_array(log_history, 'log_history'), _convert_array(count_history, 'count_history'),
              buffer.max_length)
    return dict(zip(_HISTORY_FIELDS, values, strict=True))


def _history_from_plain(value: Any) -> Any:
    """Return the ``HistoryBuffer`` of a dict that :func:`to_plain` made of one, anything else as it is."""
    if not isinstance(value, dict) or set(value) != set(_HISTORY_FIELDS):
        return value
    from mmengine.logging.history_buffer import HistoryBuffer
    return HistoryBuffer(np.asarray(value['log_history'].cpu()), np.asarray(value['count_history'].cpu()),
                         value['max_length'])


class _StoredDtype:
    """What ``numpy.dtype`` means in a file: one of the numeric types, and its byte order."""

    def __init__(self, code: str, _align: bool = False, _copy: bool = False) -> None:
        if code not in _NUMERIC_CODES:
            raise UnpicklingError(f'array type must be numeric, got {code!r}')
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest describes fields and flags, which a number has not


class _StoredArray(np.ndarray):
    """What ``numpy.ndarray`` means in a file: an array filled from checked parts of the stored state."""

    def __new__(cls) -> _StoredArray:
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, stored, fortran, data = state
        values = np.frombuffer(data, _checked(stored)).reshape(shape, order='F' if fortran else 'C')
        own: Any = values.copy().__reduce__()
        super().__setstate__(own[2])

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def _checked(stored: Any) -> np.dtype[Any]:
    if not isinstance(stored, _StoredDtype):
        raise UnpicklingError(f'array type must be a dtype, got {type(stored).__name__}')
    return stored.dtype


def _new_array(*_arguments: object) -> _StoredArray:
    """What ``numpy``'s ``_reconstruct`` means in a file: an empty array, whose state follows."""
    return _StoredArray()


def _new_scalar(stored: Any, data: bytes) -> Any:
    """What ``numpy``'s ``scalar`` means in a file: one number of a checked type."""
    return np.frombuffer(data, _checked(stored), count=1)[0]


def _statistic_name(owner: object, name: str) -> str:
    """What ``getattr`` means in a file: the name of a statistic of ``HistoryBuffer``, looked up nowhere."""
    if not (isinstance(owner, type) and owner.__name__ == 'HistoryBuffer' and name in _STATISTICS):
        raise UnpicklingError(f'getattr is not allowed in a checkpoint, got {name!r} of {owner!r}')
    return name


def _set_history_state(self: Any, state: dict[str, Any]) -> None:
    """Take a stored ``HistoryBuffer``'s data, but not its functions, which are the class's own."""
    self._set_default_statistics()
    self.max_length = int(state['max_length'])
    self._log_history = np.array(state['_log_history'])
    self._count_history = np.array(state['_count_history'])


def patch_history_buffer(module: ModuleType) -> None:
    """Let ``torch.load`` read the log history of checkpoints saved without this package."""
    module.HistoryBuffer.__setstate__ = _set_history_state
    numpy_names = [(function, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core')
                   for function, name in ((_new_array, '_reconstruct'), (_new_scalar, 'scalar'))]
    torch.serialization.add_safe_globals([
        bytes, module.HistoryBuffer, (_statistic_name, 'builtins.getattr'), (_StoredArray, 'numpy.ndarray'),
        (_StoredDtype, 'numpy.dtype'), *numpy_names
    ])


def patch_message_hub(module: ModuleType) -> None:
    """Let a message hub load the plain form of its log history."""
    load = module.MessageHub.load_state_dict

    @wraps(load)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        if isinstance(state_dict, dict) and 'log_scalars' in state_dict:
            scalars = {key: _history_from_plain(value) for key, value in state_dict['log_scalars'].items()}
            state_dict = {**state_dict, 'log_scalars': scalars}
        load(self, state_dict)

    module.MessageHub.load_state_dict = load_state_dict


def patch_checkpoint_io(module: ModuleType) -> None:
    """Save plain types, each file whole or not at all, and drop executable configs from what is loaded."""
    save, load = module.save_checkpoint, module.CheckpointLoader.load_checkpoint.__func__

    @wraps(save)
    def save_checkpoint(checkpoint: dict[str, Any], filename: str, file_client_args: dict[str, Any] | None = None,
                        backend_args: dict[str, Any] | None = None) -> None:
        plain = to_plain(checkpoint)
        if _is_local(filename, file_client_args, backend_args):
            save_whole(plain, Path(filename))
        else:
            save(plain, filename, file_client_args, backend_args)

    @wraps(load)
    def load_checkpoint(cls: type, *args: Any, **kwargs: Any) -> Any:
        checkpoint = load(cls, *args, **kwargs)
        drop_code(checkpoint)
        return checkpoint

    module.CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)
    # mmengine's other modules took the function by name, those imported later take the new one
    for importer in [module, *sys.modules.values()]:
        if vars(importer).get('save_checkpoint') is save:
            vars(importer)['save_checkpoint'] = save_checkpoint


def _is_local(filename: str, file_client_args: dict[str, Any] | None, backend_args: dict[str, Any] | None) -> bool:
    """Tell whether mmengine would write a file to a disk; arguments it refuses are its own to refuse."""
    from mmengine.fileio import FileClient, LocalBackend, get_file_backend
    if filename.startswith('pavi://') or (file_client_args is not None and backend_args is not None):
        return False
    backend = (get_file_backend(filename, backend_args=backend_args) if file_client_args is None else
               FileClient.infer_client(file_client_args, filename).client)
    return isinstance(backend, LocalBackend)


def save_whole(content: Any, path: Path) -> None:
    """Save what ``torch.load`` reads, so that a process killed at any moment leaves the earlier file or the new one.

    Args:
        content: Plain types and tensors.
        path: Where to; its folder is made.

    Raises:
        UserError: It cannot be written (a full disk, no permission); an earlier file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: no folder {path.parent} can be made: {error.strerror}') from error
    write_together({path: partial(torch.save, content)})


@contextmanager
def open_whole(path: str, mode: str = 'w') -> Iterator[io.StringIO]:
    """Open a text file for writing like ``open``; it takes its place when the block ends."""
    text = io.StringIO()
    yield text
    content = text.getvalue().encode()
    write_together({Path(path): lambda stream: stream.write(content)})


class LateRemoval:
    """A file backend that puts off removing files until it is told to.

    Args:
        backend: What really removes, and does all else at once.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._pending: list[tuple[Callable[[str], None], str]] = []

    def remove(self, path: str) -> None:
        """Remove a file later."""
        self._pending.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        """Remove a folder later."""
        self._pending.append((self._backend.rmtree, path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove_now(self, kept: Collection[Any]) -> None:
        """Remove what was put off, except for paths that were written again."""
        for remove, path in self._pending:
            if path not in kept:
                remove(path)


def patch_checkpoint_hook(module: ModuleType) -> None:
    """Have ``CheckpointHook`` write ``last_checkpoint`` in one step and remove old checkpoints after saving new ones.

    It removes first, so with ``max_keep_ckpts=1``, and with the best checkpoint always, a save that fails would leave
    none, and ``last_checkpoint`` would name a file that is gone.
    """
    hook = module.CheckpointHook
    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(hook, name, _removing_last(getattr(hook, name)))
    hook._save_best_checkpoint = _without_figure(hook._save_best_checkpoint)
    vars(module)['open'] = open_whole  # the module opens nothing but last_checkpoint


def _without_figure(save: Callable[..., None]) -> Callable[..., None]:
    """Let a validation pass that lacks the figure the best checkpoint goes by.

    mmdet gives none of its figures where nothing was detected. Beside other figures, such as a validation loss,
    mmengine would end the run; alone it warns. A figure that is missing among others of its kind is misspelt, and still
    an error.
    """

    @wraps(save)
    def save_best(self: Any, runner: Any, metrics: dict[str, Any]) -> None:
        kinds = {name.rpartition('/')[0] for name in metrics}
        missing = [key for key in getattr(self, 'key_indicators', ()) if key != 'auto' and key not in metrics
                   and key.rpartition('/')[0] not in kinds]
        if missing and metrics:
            runner.logger.warning(f'the validation gives no {missing[0]}, as when nothing is detected: it has no best '
                                  'checkpoint')
            metrics = {**metrics, **dict.fromkeys(missing)}  # None is never better
        save(self, runner, metrics)

    return save_best


def _removing_last(save: Callable[..., None]) -> Callable[..., None]:
    """Extend a method of ``CheckpointHook`` that saves."""

    @wraps(save)
    def save_then_remove(self: Any, *args: Any, **kwargs: Any) -> None:
        backend = self.file_backend
        self.file_backend = late = LateRemoval(backend)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()
        late.remove_now((self.last_ckpt, *best))

    return save_then_remove


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


def _dict_at(holder: Any, key: str) -> dict[str, Any]:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else {}


def _is_literal_config(text: Any) -> bool:
    """Tell whether a config's source only assigns literals and ``dict(...)`` to names, and inherits from no file."""
    if not isinstance(text, str):
        return False
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    return all(isinstance(statement, ast.Assign) and all(
        isinstance(target, ast.Name) and target.id != '_base_' for target in statement.targets)
               and _is_literal(statement.value) for statement in statements)


def _is_literal(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        plain_dict = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
        return plain_dict and all(_is_literal(keyword.value) for keyword in node.keywords)
    return isinstance(node, _LITERALS) and all(_is_literal(child) for child in ast.iter_child_nodes(node))
