"""What the command lines of all tools share."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from mgdet_plugin.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what a tool prints as ``error: ...`` with exit code 2."""
        raise UserError(f'{message}; see --help')

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the command line; mmengine's ``DictAction`` raises a bare ValueError for an entry without ``=``."""
        try:
            return super().parse_args(args, namespace)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError('--cfg-options takes entries of the form key=value') from error
