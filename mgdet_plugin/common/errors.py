"""The one exception for bad input from a person, what raises it, and how a tool reports it."""
from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

SHOW_ALL = 'MGDET_TRACEBACK'  # of the environment
_OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE,
                   errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR)
_BASE = ('mmdet', 'mmengine', 'mmcv')
_INSTALL_BASE = ('install one base, all three of its parts: pip install mmengine==0.10.7 mmdet==3.3.0 mmcv-lite==2.1.0,'
                 ' or pip install onedl-mmengine onedl-mmdetection onedl-mmcv (docs/install.md)')


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


def require_known(kind: type, given: Iterable[str], owner: str) -> None:
    """Refuse options that a dataclass has no field for.

    Raises:
        UserError: There are some.
    """
    known = [each.name for each in fields(kind)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(f'{owner} has no option {unknown}; it takes {", ".join(known)}')


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float and no bool; NaN is one, and holds in no comparison."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an int, no bool, of at least ``least``."""
    return is_number(value) and isinstance(value, int) and value >= least


@contextmanager
def user_errors_to_exit() -> Iterator[None]:
    """Turn a :class:`UserError` raised in the block into one line on standard error and exit code 2.

    So is a base that is not installed, or whose parts do not go together, and a file that the machine does not give.
    With ``MGDET_TRACEBACK`` set in the environment, what led to it comes first.
    """
    try:
        yield
    except (UserError, ImportError, AssertionError, OSError) as error:
        line = (_said(error) if isinstance(error, UserError) else
                _machine_fault(error) if isinstance(error, OSError) else _base_fault(error))
        if line is None:
            raise
        if os.environ.get(SHOW_ALL):
            traceback.print_exc()
        print('error: ' + printable(' '.join(map(str.strip, line.strip().splitlines()))), file=sys.stderr)
        raise SystemExit(2) from None


def printable(text: str) -> str:
    """A text for a terminal: what would steer it, as a name in a file may, is written out."""
    return ''.join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _machine_fault(error: OSError) -> str | None:
    """Which file cannot be used and why, where that is no matter of the code: no permission, a disk's fault."""
    if error.errno not in _OF_THE_MACHINE or error.filename is None:
        return None
    return f'cannot use {os.fsdecode(error.filename)}: {error.strerror}; correct that, or give another'


def _base_fault(error: ImportError | AssertionError) -> str | None:
    """What is wrong with the installed base where that is what an error is about, and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name in _BASE:
        return f'{error.name} is not installed; {_INSTALL_BASE}'
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename.replace(os.sep, '/')
    if isinstance(error, AssertionError) and raised_in.endswith('/mmdet/__init__.py'):  # it holds versions there
        return f'mmdet cannot be imported: {error}; {_INSTALL_BASE}'
    return None


def _said(error: UserError) -> str:
    """What an error says; one of a process that loads images comes with that process's traceback before it."""
    text = str(error)
    return text.rpartition(f'{type(error).__name__}: ')[2] if text.startswith('Caught ') else text
