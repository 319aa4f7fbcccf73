"""Plain data of records: out of a mapping, as JSON and as lines of it, held against a base. Imports nothing heavy."""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mgdet_plugin.common.files import write_together


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
