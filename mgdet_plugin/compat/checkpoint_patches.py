"""Checkpoints of mmengine that are whole, that torch reads back by default, and whose reading runs no code.

mmengine 0.10.7 writes ``HistoryBuffer`` objects, numpy arrays and numpy scalars, which ``torch.load`` refuses, so
nothing it saves can be resumed. :mod:`mgdet_plugin.compat` applies the ``patch_*`` functions to mmengine's modules:

* **saving** writes plain types, each file whole or not at all (:mod:`mgdet_plugin.common.checkpoints`);
* **loading** rebuilds the log history from them, checks what the file says and drops configs that hold code.
  onedl-mmengine 0.10.12 allows ``getattr`` in a file, and loads one that torch refuses all the same, with whatever it
  runs; here it does not;
* **checkpoints saved without this package** load through an allow-list of the few names they hold. Not one of those
  names leads to code of numpy or to ``getattr``: each is bound to a function or class of this module that accepts the
  data such a file really holds and nothing else. Real ``numpy.dtype`` and ``ndarray`` state would not do: a forged
  dtype turns bytes of the file into object pointers.
"""
from __future__ import annotations

import os
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mgdet_plugin.common.checkpoint_content import HUB, check_content, check_history
from mgdet_plugin.common.checkpoints import drop_code, history_from_plain, read_safely, save_whole, to_plain
from mgdet_plugin.common.errors import is_number
from mgdet_plugin.common.records import need
from mgdet_plugin.compat import replace_everywhere

_NUMERIC_CODES = frozenset(['b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8', 'c8', 'c16'])
_STATISTICS = ('min', 'max', 'current', 'mean')


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
    values, counts, most = (state[name] for name in ('_log_history', '_count_history', 'max_length'))
    check_history((values, counts, most))
    self._set_default_statistics()
    self.max_length, self._log_history, self._count_history = most, np.array(values), np.array(counts)


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
        if isinstance(state_dict, dict):
            state_dict = {**{key: {} for key in HUB}, **state_dict}
            scalars = {key: history_from_plain(value) for key, value in state_dict['log_scalars'].items()}
            state_dict['log_scalars'] = scalars
        load(self, state_dict)

    module.MessageHub.load_state_dict = load_state_dict


def patch_param_scheduler(module: ModuleType) -> None:
    """Let a scheduler take what it has itself, of the same kind, and no more: mmengine's takes any attribute."""

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        own = vars(self)
        known = {name: value for name, value in state_dict.items() if name in own}
        for name, value in known.items():
            plain = own[name] is None or type(own[name]) is type(value)
            need(plain or (is_number(own[name]) and is_number(value)), f'param_schedulers: {name}', value,
                 f'a {type(own[name]).__name__} as {type(self).__name__} has')
        own.update(known)

    module._ParamScheduler.load_state_dict = load_state_dict


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
    def load_checkpoint(cls: type, filename: str, *args: Any, **kwargs: Any) -> Any:
        is_file = os.path.isfile(os.path.expanduser(filename))  # what is not there, mmengine says
        with read_safely(filename) if is_file else nullcontext():
            checkpoint = load(cls, filename, *args, **kwargs)
        check_content(checkpoint, filename)
        drop_code(checkpoint)
        return checkpoint

    module.CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)
    if '_safe_torch_load' in vars(module):
        vars(module)['_safe_torch_load'] = _load_plain
    replace_everywhere('save_checkpoint', save, save_checkpoint)


def _load_plain(file: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
    """What onedl-mmengine's ``_safe_torch_load`` means here: torch's safe loader, this module's allow-list."""
    return torch.load(file, map_location=map_location, weights_only=True)


def _is_local(filename: str, file_client_args: dict[str, Any] | None, backend_args: dict[str, Any] | None) -> bool:
    """Tell whether mmengine would write a file to a disk; arguments it refuses are its own to refuse."""
    from mmengine.fileio import FileClient, LocalBackend, get_file_backend
    if filename.startswith('pavi://') or (file_client_args is not None and backend_args is not None):
        return False
    backend = (get_file_backend(filename, backend_args=backend_args) if file_client_args is None else
               FileClient.infer_client(file_client_args, filename).client)
    return isinstance(backend, LocalBackend)
