"""Plain data of records: out of a mapping, as JSON, held against a base, over seeds. Imports nothing heavy."""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any


def known_fields(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a record that a dataclass has fields for; a later version may have written more.

    Args:
        cls: The dataclass.
        record: Name -> value.
    """
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


def mean_and_spread(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation over seeds.

    Args:
        values: One a seed, of a figure that is never below 0; -1 where the set has no such objects, as COCO's metrics
            say it, None where it was not measured.

    Returns:
        Both, the deviation NaN where it is none: of a single value, or of values that are not finite. None where there
        is no value or one is missing.
    """
    known = [math.nan if value is None else value for value in values]
    if not known or any(math.isnan(value) or value < 0 for value in known):
        return None
    spread = len(known) > 1 and all(map(math.isfinite, known))
    return statistics.fmean(known), statistics.stdev(known) if spread else math.nan


def spread_text(values: Iterable[float | None], digits: int) -> str:
    """Mean and standard deviation over seeds for a person.

    Args:
        values: As :func:`mean_and_spread` takes them.
        digits: Behind the point.

    Returns:
        ``mean ± deviation``, without the deviation where it is none; '-' where a value is missing.
    """
    found = mean_and_spread(values)
    if found is None:
        return '-'
    mean, spread = found
    return f'{mean:.{digits}f}' + ('' if math.isnan(spread) else f' ± {spread:.{digits}f}')
