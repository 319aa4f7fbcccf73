"""Plain data of records: out of a file, checked by type and range; as JSON and as lines of it; held against a base.

Imports nothing heavy.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

from mgdet_plugin.common.errors import UserError, is_number
from mgdet_plugin.common.files import write_together

Numbers = dict[str, float]
"""Name -> number; in a file null, and here NaN, where it was not finite."""
_MANY = {str: 'texts', int: 'whole numbers'}
BELOW_ZERO = dict(least=-(2**53))
"""``metadata`` of a dataclass's whole numbers that may be negative."""
SHARE = dict(least=0, most=1)
"""The same of factors that lower something."""
_MOST = 2**53  # of whole numbers: beyond it JSON and floats do not tell them apart
_LARGEST = 1e308
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3
T = TypeVar('T')


class Damage(UserError):
    """A value of a file is not what it must be; the message says where in the file, what is there and what is needed.
    """


def need(holds: object, place: str, value: Any, what: str) -> None:
    """Refuse a value of a file that is not ``what`` is needed at its ``place``.

    Raises:
        Damage: It does not hold.
    """
    if not holds:
        raise Damage(f'{place} is {shown(value)}, expected {what}')


def shown(value: Any) -> str:
    """A value of a file for one line, cut where it is long or deep."""
    if isinstance(value, int) and abs(value) > _MOST:
        return f'a whole number of {value.bit_length()} bits'  # thousands of digits are refused, not written
    return _SHORT.repr(value)


def from_record(kind: type[T], record: Any, place: str) -> T:
    """A dataclass out of a file's object; entries that it has no field for are left alone, a later version wrote them.

    Args:
        kind: The dataclass. ``metadata`` of a field may set ``least`` and ``most``; whole numbers are from 0 where it
            does not. A float must be finite, a figure that may be None need not.
        record: What the file holds.
        place: Where in the file, for messages.

    Raises:
        Damage: A field is missing or not of its type or range.
    """
    return cast(T, typed(kind, record, place))


def typed(kind: Any, value: Any, place: str, bounds: Mapping[str, Any] | None = None) -> Any:
    """A value of a file as a value of a type: a dataclass, a TypedDict, a union, a list, a dict or a plain one.

    Raises:
        Damage: It is none.
    """
    if kind is Any:
        return value
    if get_origin(kind) is UnionType:
        kinds = get_args(kind)
        if (value is None and NoneType in kinds) or (kinds[0] is float and isinstance(value, float)):
            return value  # a best value may be infinite
        return typed(kinds[0], value, place, bounds)
    if kind in (int, float):
        return _number(kind, value, place, bounds or {})
    if kind in (str, bool):
        need(type(value) is kind, place, value, dict(str='a text', bool='true or false')[kind.__name__])
        return value
    if kind == Numbers:
        need(isinstance(value, Mapping), place, value, 'an object of numbers')
        return {text(name, place): _or_nan(each, f'{place}.{name}') for name, each in value.items()}
    if is_dataclass(kind) or is_typeddict(kind):
        return _object(kind, value, place)
    inner = get_args(kind)
    if get_origin(kind) is list:
        need(isinstance(value, (list, tuple)), place, value, f'a list of {_MANY.get(inner[0], "objects")}')
        return [typed(inner[0], each, f'{place}[{index}]') for index, each in enumerate(value)]
    assert get_origin(kind) is dict, kind
    need(isinstance(value, Mapping), place, value, 'an object')
    return {text(name, place): typed(inner[1], each, f'{place}.{name}') for name, each in value.items()}


def text(value: Any, place: str) -> str:
    """A name in a file, which is a text that can be printed.

    Raises:
        Damage: It is none.
    """
    need(isinstance(value, str) and value.isprintable(), f'a name in {place}', value, 'a text')
    return cast(str, value)


def _number(kind: type, value: Any, place: str, bounds: Mapping[str, Any]) -> Any:
    what = 'a number' if kind is float else 'a whole number'
    need(is_number(value) and (kind is float or isinstance(value, int)), place, value, what)
    least, most = (-_LARGEST, _LARGEST) if kind is float else (0, _MOST)
    least, most = bounds.get('least', least), bounds.get('most', most)
    need(least <= value <= most, place, value, {-_LARGEST: 'a finite number'}.get(least, f'{what} from {least}' + (
        f' to {most}' if most < _MOST else '')))
    return kind(value)


def _or_nan(value: Any, place: str) -> float:
    need(value is None or is_number(value), place, value, 'a number or null')
    need(value is None or isinstance(value, float) or abs(value) <= _LARGEST, place, value, 'a finite number')
    return math.nan if value is None else float(value)


def _object(kind: Any, value: Any, place: str) -> Any:
    """A dataclass or TypedDict; what is not given has its default."""
    need(isinstance(value, Mapping), place, value, 'an object')
    kinds, before = get_type_hints(kind), f'{place}.' if place else ''
    if not is_dataclass(kind):
        return {name: typed(kinds[name], value[name], f'{before}{name}') for name in kinds if name in value}
    known = {each.name: each for each in fields(kind)}
    given = [name for name, each in known.items() if name in value or each.default is each.default_factory is MISSING]
    return cast(Any, kind)(**{name: typed(kinds[name], value.get(name), f'{before}{name}', known[name].metadata)
                              for name in given})


def known_fields(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a record that a dataclass has fields for; a later version may have written more."""
    known = {each.name for each in fields(cls)}
    return {key: value for key, value in record.items() if key in known}


def finite(value: Any) -> Any:
    """Nested plain values with None for numbers that JSON cannot tell."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ratio(value: float, base: float) -> float:
    """How many times a base a loss is; 1 where both are 0, infinite where only the base is."""
    if base:
        return value / base
    return 1.0 if value == 0 else math.inf if value > 0 else math.nan


def append_line(folder: str, name: str, entry: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file of the run's folder."""
    with open(Path(folder, name), 'a', encoding='utf-8') as stream:
        stream.write(json.dumps(finite(entry)) + '\n')


def keep_lines(folder: str, name: str, stays: Callable[[Mapping[str, Any]], bool]) -> None:
    """Keep of a file's lines of JSON those that stay; what a killed process wrote in part is none."""
    path, kept = Path(folder, name), []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for line in lines:
        try:
            if stays(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            pass
    if kept != lines:
        write_together({path: lambda stream: stream.writelines(kept)})
