"""Plain data of records: out of a mapping, as JSON, held against a base. Imports nothing heavy."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any


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
