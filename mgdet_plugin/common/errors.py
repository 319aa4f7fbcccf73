"""The one exception for bad input from a person, what raises it, and how a tool reports it."""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SHOW_ALL = 'MGDET_TRACEBACK'  # of the environment


class UserError(ValueError):
    """Bad input: one line with what is wrong, the value seen and what to do.

    Raised by the package wherever the cause lies outside the code (a path, a file, a class count). Tools turn it
    into ``error: <line>`` on standard error and exit code 2; other exceptions keep their traceback.
    """


def require(holds: object, what: str, value: object) -> None:
    """Refuse a value that does not hold, in the line ``<what>, got <value>``.

    Raises:
        UserError: It does not.
    """
    if not holds:
        raise UserError(f'{what}, got {value!r}')


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float and no bool; NaN is one, and holds in no comparison."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an int, no bool, of at least ``least``."""
    return is_number(value) and isinstance(value, int) and value >= least


@contextmanager
def user_errors_to_exit() -> Iterator[None]:
    """Turn a :class:`UserError` raised in the block into one line on standard error and exit code 2.

    With ``MGDET_TRACEBACK`` set in the environment, what led to it comes first.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get(SHOW_ALL):
            traceback.print_exc()
        print('error: ' + ' '.join(_said(error).split()), file=sys.stderr)
        raise SystemExit(2) from None


def _said(error: UserError) -> str:
    """What an error says; one of a process that loads images comes with that process's traceback before it."""
    text = str(error)
    return text.rpartition(f'{type(error).__name__}: ')[2] if text.startswith('Caught ') else text
