"""What mmengine logs, at a length a person reads: its log file has every line, the terminal the first of the long."""
from __future__ import annotations

import logging
import re
import sys
from functools import wraps
from types import ModuleType
from typing import Any

from mgdet_plugin.compat import replace_everywhere

LONG = 25  # lines; a table of figures has fewer
OPENINGS = {'System environment:': 'the environment', 'Config:': 'the config',
            'Hooks will be executed in the following order:': 'the hooks and when they run'}
"""How the long messages of mmengine begin -> what they are."""
OF_MMENGINE = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')
"""How warnings begin that mmengine's own code brings about, which a person can do nothing about."""
NOTHING_FOUND = 'The testing results of the whole dataset is empty'
"""How the error of mmdet's metrics begins where a detector finds nothing."""
_VALIDATED = re.compile(r'Epoch\(val\)\s+\[(\d+)]')  # how the line about a validation begins, with every metric
_PROGRESS = re.compile(r'stage \d+/|keep: |Epoch\(val\)')  # how what a quiet run says begins, warnings aside
_quiet = False


def be_quiet() -> None:
    """From now on let the terminal show a line a stage, a line a validation and warnings; the log file has all."""
    global _quiet
    _quiet = True


class ShortFormatter(logging.Formatter):
    """Formats a long message as one line that names the file with all of it.

    Args:
        inner: Formats the others.
        log_file: The file.
    """

    def __init__(self, inner: logging.Formatter, log_file: str) -> None:
        super().__init__()
        self.inner, self.log_file = inner, log_file

    def format(self, record: logging.LogRecord) -> str:
        """The record's text for the terminal; a warning or an error is never shortened."""
        if _quiet and record.levelno < logging.WARNING:
            return _short(record.getMessage())
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
        not _quiet or record.levelno >= logging.WARNING or _PROGRESS.match(message) is not None)


def _short(message: str) -> str:
    """The line about a validation with its epoch, mean APs and total losses alone; any other as it is."""
    found = _VALIDATED.match(message)
    if found is None:
        return message
    figures = re.findall(r'(\S+(?:mAP|mAP_50|/loss)): (\S+)', message)
    return ', '.join([f'epoch {found[1]} validated', *(' '.join(each) for each in figures
                                                       if not each[0].startswith('drift'))])


def _let_through(record: logging.LogRecord) -> None:
    """End a run whose output has no reader any more, rather than print a traceback for every line."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        raise
    logging.Handler.handleError(logging.Handler(), record)


def patch_logger(module: ModuleType) -> None:
    """Let a logger that has a file, below the level of debugging, keep long messages there; debugging needs a logger.

    Without one mmengine prints messages of every level, so that what onedl-mmdetection says when it is imported would
    come before the JSON of a command.
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

    @wraps(print_any)
    def print_log(msg: object, logger: Any = None, level: int = logging.INFO) -> None:
        if logger is not None or level > logging.DEBUG:
            print_any(msg, logger, level)

    module.MMLogger.__init__ = init_short
    replace_everywhere('print_log', print_any, print_log)


def patch_coco(module: ModuleType) -> None:
    """Let pycocotools read files without saying so, and evaluate so where all is quiet."""
    def say(*words: object) -> None:
        if not _quiet and module.__name__ == 'pycocotools.cocoeval':
            print(*words)

    module.print = say  # type: ignore[attr-defined]
