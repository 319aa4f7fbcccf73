"""What reports of several seeds share: means with their spread, and tables in markdown."""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


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


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown.

    Args:
        heads: Of its columns.
        rows: Cells.
    """
    head, *lines = ('| ' + ' | '.join(line) + ' |' for line in (heads, *rows))
    return '\n'.join([head, '|---' * len(heads) + '|', *lines])
