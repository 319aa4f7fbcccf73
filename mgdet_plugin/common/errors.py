"""The one exception for bad input from a person, and how a tool reports it."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: one line with what is wrong, the value seen and what to do.

    Raised by the package wherever the cause lies outside the code (a path, a file, a class count). Tools turn it
    into ``error: <line>`` on standard error and exit code 2; other exceptions keep their traceback.
    """


@contextmanager
def user_errors_to_exit() -> Iterator[None]:
    """Turn a :class:`UserError` raised in the block into one line on standard error and exit code 2."""
    try:
        yield
    except UserError as error:
        print('error: ' + ' '.join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
