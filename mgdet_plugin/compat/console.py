"""What the terminal shows of a run: what a person reads, while the log file has every line."""
from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import IO, Any

from mgdet_plugin.compat import replace_everywhere

VERBOSE, SHORT, QUIET = 'verbose', 'short', 'quiet'
"""All that is logged, long messages by their first line; what is marked for a person; the same without progress."""
SAID: dict[str, bool] = dict(said=True)
"""``extra`` of a record that is meant for a person: ``logger.info('...', extra=SAID)``."""
LONG = 25  # lines; a table of figures has fewer
OPENINGS = {'System environment:': 'the environment', 'Config:': 'the config',
            'Hooks will be executed in the following order:': 'the hooks and when they run'}
"""How the long messages of mmengine begin -> what they are."""
OF_MMENGINE = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')
"""How warnings begin that mmengine's own code brings about, which a person can do nothing about."""
NOTHING_FOUND = 'The testing results of the whole dataset is empty'
"""How the error of mmdet's metrics begins where a detector finds nothing."""
_TABLE = re.compile(r'^\+[-+]+\+$', re.MULTILINE)  # a line of a table of figures, as VOCMetric logs one
_CLEAR = '\r\x1b[2K'  # begin the terminal's line anew
_EVERY = 0.2  # seconds between two states of a line in place
_AT_LEAST_EVERY = 600.0  # seconds between two lines of a log
_mode, _tables = VERBOSE, False


def show(mode: str, tables: bool = False) -> None:
    """From now on let the terminal show what a mode says, and tables of figures; the log file has all."""
    global _mode, _tables
    _mode, _tables = mode, tables


def shows(*modes: str) -> bool:
    """Whether the terminal is in one of some modes."""
    return _mode in modes


class ProgressLine:
    """How far a run is: one line in place on a terminal; elsewhere a line at each tenth, and every ten minutes.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told, self._tenth = clock(), -1
        self._open = False

    def show(self, share: float, text: Callable[[], str]) -> None:
        """Show what is asked for only when it is due: ``share`` of the run is done, from 0 to 1."""
        now, in_place = self._clock(), sys.stdout.isatty()
        tenth = int(10 * share + 1e-9)
        if in_place:
            due = now - self._told >= _EVERY
        else:
            self._tenth = tenth if self._tenth < 0 else self._tenth
            due = tenth > self._tenth or now - self._told >= _AT_LEAST_EVERY
        if not due:
            return
        self._told, self._tenth, line = now, tenth, text()
        if in_place:
            print(_CLEAR + line[:shutil.get_terminal_size().columns - 1], end='', flush=True)
        else:
            print(line, flush=True)
        self._open = in_place

    def clear(self) -> None:
        """Give the line in place free for something else."""
        if self._open:
            self._open = False
            print(_CLEAR, end='', flush=True)


PROGRESS = ProgressLine()


class ShortFormatter(logging.Formatter):
    """Formats a long message as one line that names the file with all of it; what is for a person, without the time.

    Args:
        inner: Formats the others.
        log_file: The file.
    """

    def __init__(self, inner: logging.Formatter, log_file: str) -> None:
        super().__init__()
        self.inner, self.log_file = inner, log_file

    def format(self, record: logging.LogRecord) -> str:
        """The record's text for the terminal; a warning or an error is never shortened."""
        PROGRESS.clear()
        if _mode != VERBOSE:
            level = f'{record.levelname.lower()}: ' if record.levelno >= logging.WARNING else ''
            return level + record.getMessage()
        lines = [line for line in record.getMessage().splitlines() if line.strip(' -')]
        if record.levelno >= logging.WARNING or len(lines) < LONG:
            return self.inner.format(record)
        short = logging.makeLogRecord({**vars(record), 'args': None, 'msg': (
            f'{OPENINGS.get(lines[0], lines[0])}: {len(lines)} lines in {self.log_file}')})
        return self.inner.format(short)


def _shown(record: logging.LogRecord) -> bool:
    """Whether the terminal shows a record; where nothing was detected, which is no error, in words that say so."""
    if record.getMessage().startswith(NOTHING_FOUND):
        record.msg, record.args = 'nothing was detected above test_cfg.score_thr, so there is no AP', None
        record.levelno, record.levelname = logging.WARNING, 'WARNING'
    message = record.getMessage()
    return not message.startswith(OF_MMENGINE) and (
        _mode == VERBOSE or record.levelno >= logging.WARNING or getattr(record, 'said', False)
        or (_tables and _TABLE.search(message) is not None))


def _let_through(record: logging.LogRecord) -> None:
    """End a run whose output has no reader any more, rather than print a traceback for every line."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        raise
    logging.Handler.handleError(logging.Handler(), record)


def patch_logger(module: ModuleType) -> None:
    """Let a logger that has a file, below the level of debugging, keep there what is not for the terminal.

    What mmengine logs without a logger it prints, at every level: debugging needs a logger, so that what
    onedl-mmdetection says when it is imported does not come before the JSON of a command.
    """
    init, print_any = module.MMLogger.__init__, module.print_log

    @wraps(init)
    def init_short(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        console = self.handlers[0]
        console.handleError = _let_through
        if self.log_file is not None and console.level > logging.DEBUG:
            console.setFormatter(ShortFormatter(console.formatter, self.log_file))
            console.addFilter(_shown)

    def say(text: object) -> None:
        if _mode == VERBOSE or (_tables and _TABLE.search(str(text)) is not None):
            print(text)

    @wraps(print_any)
    def print_log(msg: object, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            print_any(msg, logger, level)

    module.MMLogger.__init__ = init_short
    module.print = say  # type: ignore[attr-defined]
    replace_everywhere('print_log', print_any, print_log)


def patch_coco(module: ModuleType) -> None:
    """Let pycocotools read files without saying so, and evaluate so where the terminal does not show all.

    It reads JSON in the encoding of the place it runs at, and refuses a byte order mark: it reads it as ``json`` does.
    """
    def say(*words: object) -> None:
        if _mode == VERBOSE and module.__name__ == 'pycocotools.cocoeval':
            print(*words)

    def open_json(path: str, mode: str = 'r') -> IO[Any]:
        if mode != 'r':
            return open(path, mode)
        with open(path, 'rb') as stream:
            encoding = json.detect_encoding(stream.read(4))
        return open(path, encoding=encoding)

    module.print, module.open = say, open_json  # type: ignore[attr-defined]
