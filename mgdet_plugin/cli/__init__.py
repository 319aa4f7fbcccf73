"""A file a command: parser and call. ``tools/*.py`` and the console script ``mgdet`` are two doors to the same."""
from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import active_children
from types import ModuleType
from typing import NoReturn

from mgdet_plugin.common.errors import UserError, user_errors_to_exit
from mgdet_plugin.common.folder_lock import let_go
from mgdet_plugin.common.interruption import ASKED, Interrupted
from mgdet_plugin.common.resources import TOOLS, nearest
from mgdet_plugin.common.resources import command as spelled

_PATIENCE = 5.0  # seconds for a process that was told to end

COMMANDS = dict(
    init='prepare', doctor='prepare', anchors='prepare', import_keras='weights', verify_import='weights',
    complete_labels='training', first_loss='training', plan='training', look='prepare', train='training',
    test='training', check_run='results', plot_run='results', compare='results', evaluate='results', draw='results',
    detect='results', blend_weights='results', export_keras='weights', export='weights', mmdet_tool='results',
    benchmark='results')
"""All commands, about in the order they are used in -> the room of their file, which has
``<command>_command(arguments) -> exit code``."""


def run(command: str) -> NoReturn:
    """Run a command on the program's arguments and end the process with its exit code."""
    arguments = sys.argv[1:]
    with _quiet_ends(lambda: again(command, arguments)), user_errors_to_exit():
        code = getattr(_module(command), f'{command}_command')(arguments)
        sys.stdout.flush()  # where its reader is gone, here and not at the interpreter's end
        sys.exit(code)


def again(command: str, arguments: Sequence[str]) -> str:
    """The command line that goes on where an interrupted command stopped, or starts it again."""
    goes_on = getattr(_module(command), 'goes_on', None)
    if 'RANK' in os.environ:  # the launcher knows its own command
        return 'the same command' + (' with --resume' if goes_on is not None else '')
    return spelled(command, *(goes_on(arguments) if goes_on is not None else arguments))


@contextmanager
def _quiet_ends(say_again: Callable[[], str]) -> Iterator[None]:
    """End the process in one line at Ctrl-C, SIGTERM or SIGHUP, and in none where the reader of its output has gone.

    Libraries turn an interruption into errors of other kinds, so it is taken note of when it comes. The processes that
    load images leave it to this one.
    """
    ASKED.listen()
    try:
        yield
    except BaseException as error:
        ASKED.ignore()
        ended = isinstance(error, Interrupted)  # of several processes all are, by the one that was asked
        if ended or (ASKED.number is not None and not isinstance(error, SystemExit)):
            if os.environ.get('RANK', '0') == '0':
                saved = f' {error}' if ended else ''
                print(f'\ninterrupted{saved}; to go on: {say_again()}', file=sys.stderr)
            _end(128 + (ASKED.number or signal.SIGTERM))
        if _is_unread(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end(128 + signal.SIGPIPE)
        raise


def _is_unread(error: BaseException) -> bool:
    """Whether a command ends because nobody reads its output, or has some left that nobody will."""
    if isinstance(error, SystemExit):  # of --help
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            return True
    if not isinstance(error, BrokenPipeError):
        return False
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _end(code: int) -> NoReturn:
    """End this process and those it started to load images, at once."""
    for child in active_children():
        child.terminate()
    for child in active_children():
        child.join(_PATIENCE)
    let_go()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> NoReturn:
    """The console script: ``mgdet COMMAND ...`` is ``python tools/COMMAND.py ...``."""
    command = sys.argv[1] if len(sys.argv) > 1 else '--help'
    with _quiet_ends(lambda: 'mgdet --help'), user_errors_to_exit():
        if command in ('-h', '--help'):
            print(overview())
            sys.exit()
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
