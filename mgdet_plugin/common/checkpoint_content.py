"""What a checkpoint may hold: checked on reading, by type and range, before any of it is used.

``torch.load`` builds plain types and tensors and no other; this is about what they say. A file may hold a million lists
in each other, a tensor without the bytes it claims, or words where numbers belong; and mmengine takes most of what it
reads as it is. Entries of mmengine are checked here, those of this package by who writes them (:func:`checks`).
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError, is_number, is_whole
from mgdet_plugin.common.name_lists import MAX_CLASSES, checked_names
from mgdet_plugin.common.records import need, shown, text, typed

_DEEPEST = 40  # of what is in each other
_MOST = 5_000_000  # entries, each counted as often as it would be written out
_LONGEST = 10**9  # log history
_TENSORS = (Tensor, torch.nn.Parameter)
_LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device,
           np.generic, np.ndarray)
_WAY_OUT = 'it is damaged or forged; give another checkpoint'
HISTORY_FIELDS = ('log_history', 'count_history', 'max_length')
HUB = ('log_scalars', 'runtime_info', 'resumed_keys')
Check = Callable[[Any, str], object]
C = TypeVar('C', bound=Check)
_CHECKS: dict[str, Check] = {}


class _Meta(TypedDict, total=False):
    """``meta`` as far as it is used."""
    epoch: int
    iter: int
    seed: int | None
    experiment_name: str
    run: str | None
    dataset_meta: dict[str, Any] | None
    keras_import: dict[str, Any] | None


def checks(key: str) -> Callable[[C], C]:
    """Name what checks an entry of a checkpoint: it takes the entry and its place, and raises a :class:`UserError`."""

    def register(check: C) -> C:
        _CHECKS[key] = check
        return check

    return register


def check_content(content: Any, name: object) -> None:
    """Refuse the content of a checkpoint that is not what it must be.

    Entries nobody has a check for are none that anybody uses; they must be plain all the same.

    Args:
        content: What the safe loader gave.
        name: The file, for messages.

    Raises:
        UserError: With the place in the file and what is there.
    """
    try:
        _weigh(content, '', 0, {})
        for key, check in _CHECKS.items():
            if isinstance(content, Mapping) and content.get(key) is not None:
                check(content[key], key)
    except UserError as error:
        raise UserError(f'{name}: {error}; {_WAY_OUT}') from None


def _weigh(value: Any, place: str, depth: int, known: dict[int, int]) -> int:
    """How many entries a value has, written out; what is named twice counts twice and is looked at once."""
    if isinstance(value, _TENSORS):
        _check_tensor(value, place)
        return 1
    if isinstance(value, _LEAVES):
        return 1
    history = type(value).__name__ == 'HistoryBuffer'
    plain = isinstance(value, (Mapping, list, tuple, set, frozenset)) or history
    need(plain, place or 'it', value, 'plain values')
    need(depth < _DEEPEST, place[:80], value, f'values at most {_DEEPEST} deep')
    if id(value) not in known:
        known[id(value)] = _MOST  # while it is looked at: one that holds itself has no end
        own = getattr(value, '__dict__', {})
        need(not isinstance(value, OrderedDict) or set(own) <= {'_metadata'}, f'{place} as an object', list(own),
             'no attributes')
        items = ([*value.items(), *own.items()] if isinstance(value, Mapping) else [*own.items()] if history else
                 [*enumerate(value)])
        total = 1
        for key, each in items:
            parts = key if isinstance(key, tuple) else (key, )
            need(all(isinstance(part, _LEAVES) for part in parts), f'a key in {place or "it"}', key, 'a plain value')
            name = key[:60] if isinstance(key, str) else shown(key)
            total += _weigh(each, f'{place}.{name}' if place else name, depth + 1, known)
            need(total <= _MOST, place or 'it', value, f'at most {_MOST:,} entries')
        known[id(value)] = total
    return known[id(value)]


def _check_tensor(value: Tensor, place: str) -> None:
    """A tensor must have its numbers, a place in memory for each."""
    kind = f'a tensor {str(value.layout).removeprefix("torch.")} on {value.device.type}'
    need(type(value) in _TENSORS and value.layout is torch.strided and not value.is_meta and not value.is_quantized
         and not value.is_nested, place, kind, 'a dense tensor')
    size, there = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    need(size <= there, place, f'a tensor of {size:,} bytes with {there:,} of them', 'a tensor that has its numbers')


@checks('meta')
def _check_meta(meta: Any, place: str) -> None:
    found = typed(_Meta, meta, place)
    need((found.get('seed') or 0) < 2**32, f'{place}.seed', found.get('seed'), 'a whole number below 2 ** 32')
    classes = (found.get('dataset_meta') or {}).get('classes')
    if classes is not None:
        need(isinstance(classes, (list, tuple)) and len(classes) <= MAX_CLASSES, f'{place}.dataset_meta.classes',
             classes, f'a list of at most {MAX_CLASSES:,} names')
        for each in classes:
            named = each.strip() if isinstance(each, str) else each  # a list of a person's may end lines in names
            text(named, f'{place}.dataset_meta.classes')
    checked_new_classes(meta.get('new_classes'), f'{place}.new_classes')
    anchors = (found.get('keras_import') or {}).get('anchors')
    need(anchors is None or _are_sizes(anchors), f'{place}.keras_import.anchors', anchors, 'sizes by scale')


def checked_new_classes(found: Any, origin: str) -> tuple[str | int, ...]:
    """Classes that weights have rows for and have not learnt, by name or by place.

    Raises:
        UserError: It is no list of either.
    """
    if found is None or (isinstance(found, list) and not found):
        return ()
    places = isinstance(found, list) and all(type(each) is int and 0 <= each < MAX_CLASSES for each in found)
    return tuple(found) if places else checked_names(found, origin)


def _are_sizes(anchors: Any) -> bool:
    lists = (list, tuple)
    return isinstance(anchors, lists) and all(isinstance(scale, lists) and all(
        isinstance(size, lists) and len(size) == 2 and all(is_number(side) and 0 < side < 1e6 for side in size)
        for size in scale) for scale in anchors)


@checks('message_hub')
def _check_message_hub(hub: Any, place: str) -> None:
    need(isinstance(hub, Mapping), place, hub, 'an object')
    parts = {key: hub.get(key, {}) for key in HUB}
    for key, entries in parts.items():
        need(isinstance(entries, Mapping), f'{place}.{key}', entries, 'an object')
        for name in entries:
            text(name, f'{place}.{key}')
    for name, history in parts['log_scalars'].items():
        if isinstance(history, Mapping):
            need(set(history) == set(HISTORY_FIELDS), f'{place}.log_scalars.{name}', list(history), 'a log history')
            check_history([history[key] for key in HISTORY_FIELDS], f'{place}.log_scalars.{name}')
        elif type(history).__name__ == 'HistoryBuffer':  # mmengine leaves out what is neither
            own = vars(history)
            check_history([own.get(key) for key in ('_log_history', '_count_history', 'max_length')],
                          f'{place}.log_scalars.{name}')
    for name, resumed in parts['resumed_keys'].items():
        need(isinstance(resumed, bool), f'{place}.resumed_keys.{name}', resumed, 'true or false')


def check_history(history: Sequence[Any], place: str = 'a log history') -> None:
    """Refuse what is no log history: values, how many each stands for, how many are kept.

    Raises:
        UserError: It is none.
    """
    values, counts, most = history
    for what in (values, counts):
        need(isinstance(what, (Tensor, np.ndarray)) and what.ndim == 1 and len(what) == len(values), place, what,
             'values and as many counts')
    need(is_whole(most, 1) and most < _LONGEST, f'{place}.max_length', most, 'a whole number above 0')


@checks('optimizer')
def _check_optimizer(optimizer: Any, place: str) -> None:
    """One optimizer's state; that of several, by name, is left to who has several."""
    need(isinstance(optimizer, Mapping), place, optimizer, 'an object')
    if 'param_groups' not in optimizer:
        return
    state, groups = optimizer.get('state'), optimizer['param_groups']
    need(isinstance(state, Mapping) and all(isinstance(each, Mapping) for each in state.values()), f'{place}.state',
         state, 'an object of objects')
    need(isinstance(groups, (list, tuple)), f'{place}.param_groups', groups, 'a list of objects')
    for index, group in enumerate(groups):
        where = f'{place}.param_groups[{index}]'
        need(isinstance(group, Mapping) and isinstance(group.get('params'), (list, tuple)), where, group,
             'an object with params')
        need(all(is_whole(each, 0) for each in group['params']), f'{where}.params', group['params'],
             'whole numbers, each that of a parameter')
        for name, value in group.items():
            if name != 'params':
                _check_setting(text(name, where), value, f'{where}.{name}')
    for key, each in state.items():
        for name, value in each.items():
            need(value is None or isinstance(value, (Tensor, float)) or (is_number(value) and abs(value) < 2**63),
                 f'{place}.state.{key}.{name}', value, 'numbers')


def _check_setting(name: str, value: Any, place: str) -> None:
    """A number of an optimizer's group: what a file says of them is what a resumed run trains by."""
    for each in value if isinstance(value, (list, tuple)) else [value]:
        need(each is None or isinstance(each, (bool, str)) or (is_number(each) and 0 <= each <= 1e6), place, value,
             'numbers from 0 to a million')


@checks('param_schedulers')
def _check_schedulers(schedulers: Any, place: str) -> None:
    each_of = schedulers.items() if isinstance(schedulers, Mapping) else [(place, schedulers)]
    for where, states in each_of:
        need(isinstance(states, (list, tuple)) and all(isinstance(state, Mapping) for state in states), where, states,
             'a list of objects')
        for state in states:
            for name, value in state.items():
                text(name, where)
                steps = name in ('last_step', '_global_step')
                need(not steps or (is_number(value) and -1 <= value < 2**53), f'{where}.{name}', value, 'a step')


@checks('ema_state_dict')
def _check_averages(averages: Any, place: str) -> None:
    need(isinstance(averages, Mapping) and all(isinstance(key, str) and isinstance(value, Tensor)
                                               for key, value in averages.items()), place, averages, 'tensors by name')


def check_finite(content: Mapping[str, Any], name: object) -> None:
    """Refuse a state to go on from with numbers that are not finite beside its weights: it would spread from there.

    Raises:
        UserError: With the first place.
    """
    optimizer = content.get('optimizer') or {}
    found = {'ema_state_dict': content.get('ema_state_dict') or {},
             **{f'optimizer.state.{key}': each for key, each in (optimizer.get('state') or {}).items()}}
    for place, tensors in found.items():
        for key, value in tensors.items():
            numbers = value if isinstance(value, Tensor) else torch.tensor(value or 0.0)
            if numbers.is_floating_point() and not bool(numbers.isfinite().all()):
                raise UserError(f'{name}: {place}.{key} has numbers that are not finite; give an earlier checkpoint')
