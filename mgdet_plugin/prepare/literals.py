"""Plain values as the text of a config."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH = 120


def assigned(name: str, value: Any) -> list[str]:
    """The lines of ``name = value``."""
    return lines_of(value, f'{name} = ', '', '')


def lines_of(value: Any, start: str, end: str, indent: str) -> list[str]:
    """A value between two texts: in one line where it fits, else an entry a line."""
    text = f'{indent}{start}{literal(value)}{end}'
    entries = _entries(value)
    if len(text) <= WIDTH or entries is None:
        return [text]
    opening, closing = ('dict(', ')') if isinstance(value, Mapping) else ('[', ']') if isinstance(value, list) else (
        '(', ')')
    inner = [line for key, each in entries for line in lines_of(each, key, ',', f'{indent}    ')]
    if not (isinstance(value, tuple) and len(entries) == 1):
        inner[-1] = inner[-1].removesuffix(',')
    return [f'{indent}{start}{opening}', *inner[:-1], f'{inner[-1]}{closing}{end}']


def literal(value: Any) -> str:
    """A value in one line, mappings as ``dict(key=value)``."""
    entries = _entries(value)
    if entries is None:
        return repr(value)
    inner = ', '.join(f'{key}{literal(each)}' for key, each in entries)
    if isinstance(value, Mapping):
        return f'dict({inner})'
    return f'[{inner}]' if isinstance(value, list) else f'({inner}{", " if len(entries) == 1 else ""})'


def _entries(value: Any) -> list[tuple[str, Any]] | None:
    """What begins each entry of a mapping or sequence, and the entry; None of another value."""
    if isinstance(value, Mapping):
        return [(f'{key}=', each) for key, each in value.items()]
    return [('', each) for each in value] if isinstance(value, (list, tuple)) else None
