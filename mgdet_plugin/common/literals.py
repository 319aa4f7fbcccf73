"""Plain values as the text of a config."""
from __future__ import annotations

import math
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

WIDTH = 120


def laid_out(values: Mapping[str, Any]) -> str:
    """The text of a config that says the same: a key a line in the order of names, as mmengine writes it."""
    return ''.join(f'{line}\n' for key, value in _sorted(values).items() for line in assigned(key, value))


def _sorted(value: Any) -> Any:
    """A value with the entries of all its mappings in the order of their names."""
    if isinstance(value, Mapping):
        return {key: _sorted(each) for key, each in sorted(value.items(), key=lambda entry: str(entry[0]))}
    return type(value)(map(_sorted, value)) if type(value) in (list, tuple) else value


def assigned(name: str, value: Any) -> list[str]:
    """The lines of ``name = value``."""
    return lines_of(value, f'{name} = ', '', '')


def lines_of(value: Any, start: str, end: str, indent: str) -> list[str]:
    """A value between two texts: in one line where it fits, else an entry a line."""
    text = f'{indent}{start}{literal(value)}{end}'
    entries = _entries(value)
    if len(text) <= WIDTH or not entries:
        return [text]
    opening, closing = _brackets(value)
    inner = [line for key, each in entries for line in lines_of(each, key, ',', f'{indent}    ')]
    if not (isinstance(value, tuple) and len(entries) == 1):
        inner[-1] = inner[-1].removesuffix(',')
    return [f'{indent}{start}{opening}', *inner[:-1], f'{inner[-1]}{closing}{end}']


def literal(value: Any) -> str:
    """A value in one line, mappings as ``dict(key=value)`` where their keys are names."""
    entries = _entries(value)
    if entries is None:
        return repr(value) if not isinstance(value, float) or math.isfinite(value) else f"float('{value}')"
    opening, closing = _brackets(value)
    inner = ', '.join(f'{key}{literal(each)}' for key, each in entries)
    return f'{opening}{inner}{", " if isinstance(value, tuple) and len(entries) == 1 else ""}{closing}'


def _brackets(value: Any) -> tuple[str, str]:
    """What stands around the entries of a mapping or sequence."""
    if isinstance(value, Mapping):
        return ('dict(', ')') if _has_names(value) else ('{', '}')
    return ('[', ']') if isinstance(value, list) else ('(', ')')


def _has_names(value: Mapping[Any, Any]) -> bool:
    """Whether all keys can be written as arguments are."""
    return all(isinstance(key, str) and key.isidentifier() and not iskeyword(key) for key in value)


def _entries(value: Any) -> list[tuple[str, Any]] | None:
    """What begins each entry of a mapping or sequence, and the entry; None of another value."""
    if isinstance(value, Mapping):
        named = _has_names(value)
        return [(f'{key}=' if named else f'{key!r}: ', each) for key, each in value.items()]
    return [('', each) for each in value] if isinstance(value, (list, tuple)) else None
