"""A file a command: parser and call. ``tools/*.py`` and the console script ``mgdet`` are two doors to the same."""
from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.common.resources import TOOLS, nearest

COMMANDS = ('import_keras', 'verify_import', 'first_loss', 'plan', 'train', 'test', 'check_run', 'plot_run', 'compare',
            'draw', 'blend_weights', 'export_keras', 'mmdet_tool', 'benchmark')
"""All commands, about in the order they are used in: modules of this package with ``main(arguments) -> exit code``."""


def run(command: str) -> NoReturn:
    """Run a command on the program's arguments and end the process with its exit code."""
    with user_errors_to_exit():
        sys.exit(import_module(f'{__name__}.{command}').main(sys.argv[1:]))


def main() -> NoReturn:
    """The console script: ``mgdet COMMAND ...`` is ``python tools/COMMAND.py ...``."""
    command = sys.argv[1] if len(sys.argv) > 1 else '--help'
    if command in ('-h', '--help'):
        print(overview())
        sys.exit()
    with user_errors_to_exit():
        if command not in COMMANDS:
            raise UserError(f"there is no command '{command}'{nearest(command, COMMANDS)}; mgdet --help lists all")
    sys.argv[:2] = [str(TOOLS / f'{command}.py')]  # what a command starts again is that file
    run(command)


def overview() -> str:
    """Every command on a line, by the first line of what its module says."""
    lines = ['usage: mgdet COMMAND ...; mgdet COMMAND --help for its options', '']
    for command in COMMANDS:
        said = import_module(f'{__name__}.{command}').__doc__ or ''
        lines.append(f'  {command:<14} {said.splitlines()[0]}')
    return '\n'.join(lines)
