"""What the command lines share. Neither this nor the top of a command imports torch or mmdet, which takes seconds."""
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mgdet_plugin.common.errors import UserError

FORMATS = ('coco', 'voc', 'yolo', 'lines', 'csv')  # of annotations, as datasets.sources.find reads them


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others.

    Args:
        module: ``__name__`` of the command's module.
        doc: Its docstring; what follows the first line is printed as it stands.
    """

    def __init__(self, module: str, doc: str | None) -> None:
        super().__init__(f'mgdet {module.rpartition(".")[2]}', description=doc,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse_known_args(self, args: Sequence[str] | None = None,  # type: ignore[override]
                         namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Refuse an empty argument, as a shell makes of a variable that is not set; as a path it would mean here."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(('', *words), words):
            option = word if word.startswith('--') else before if before.startswith('--') else 'an argument'
            if not word.strip() or re.fullmatch(r'--[\w-]+=\s*', word):
                self.error(f"{option.partition('=')[0]} is empty; give a value, or leave it out")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what a tool prints as ``error: ...`` with exit code 2."""
        raise UserError(f'{message}; see --help')

    def add_cfg_options(self) -> None:
        """Add ``--cfg-options`` as mmdet's scripts take it; :func:`cfg_options` says what was given."""
        self.add_argument('--cfg-options', nargs='+', action=_Entries, metavar='K=V',
                          help='config keys to set; a list is key="[a,b]" or key=a,b, without white space')

    def add_launch_options(self) -> None:
        """Add the options that mmdet's train and test scripts share."""
        self.add_argument('--work-dir', metavar='D', help='folder to write to (default: work_dirs/CFG)')
        self.add_cfg_options()
        self.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                          help='what started several processes')
        self.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)

    def command_line(self, arguments: argparse.Namespace) -> list[str]:
        """A command line that is parsed to the same, every option by its full name and after the positional ones."""
        words: list[str] = []
        for action in self._actions:
            value = getattr(arguments, action.dest, action.default)
            if not action.option_strings:
                words.append(str(value))
            elif value != action.default:
                flag = action.option_strings[0]
                words += [flag] if value is True else [flag, *value] if action.nargs == '+' else [f'{flag}={value}']
        return words


class _Entries(argparse.Action):
    """Keeps entries as they are; what they mean is for mmengine, which must be imported for that."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        wrong = [each for each in values if not each.partition('=')[0] or '=' not in each]
        if wrong:
            raise UserError(f'--cfg-options takes entries of the form key=value, got {wrong[0]!r}')
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), *values])


def cfg_options(entries: Sequence[str] | None) -> dict[str, Any]:
    """Dotted key -> value of what ``--cfg-options`` was given, as mmengine reads it.

    Raises:
        UserError: A value has brackets that do not match.
    """
    if not entries:
        return {}
    from mmengine.config import DictAction
    parser = argparse.ArgumentParser()
    parser.add_argument('entries', nargs='*', action=DictAction)
    try:
        found: dict[str, Any] = parser.parse_args(list(entries)).entries
    except AssertionError as error:
        raise UserError(f'--cfg-options: {error}; a list is key="[a,b]" or key=a,b, without white space') from error
    return found
