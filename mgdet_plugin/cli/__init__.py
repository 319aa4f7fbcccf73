"""A file a command: parser and call. ``tools/*.py`` and the console script ``mgdet`` are two doors to the same."""
from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.common.resources import TOOLS, nearest

COMMANDS = dict(
    import_keras='weights', verify_import='weights', first_loss='training', plan='training', train='training',
    test='training', check_run='results', plot_run='results', compare='results', draw='results',
    blend_weights='results', export_keras='weights', mmdet_tool='results', benchmark='results')
"""All commands, about in the order they are used in -> the room of their file, which has
``<command>_command(arguments) -> exit code``."""


def run(command: str) -> NoReturn:
    """Run a command on the program's arguments and end the process with its exit code."""
    with user_errors_to_exit():
        sys.exit(getattr(_module(command), f'{command}_command')(sys.argv[1:]))


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
        said = _module(command).__doc__ or ''
        lines.append(f'  {command:<14} {said.splitlines()[0]}')
    return '\n'.join(lines)


def _module(command: str) -> ModuleType:
    return import_module(f'{__name__}.{COMMANDS[command]}.{command}')
