"""The folder of a training: whether it can be written to, and that one training at a time does."""
from __future__ import annotations

import ast
import copy
import os
import re
import resource
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.common.files import remove_left_overs, write_together
from mgdet_plugin.common.folder_lock import NAME, check_free, hold
from mgdet_plugin.common.guard_record import FILE
from mgdet_plugin.engine.transitions import LAST

_FILES, _FEWEST = 4096, 128  # open at once
_OTHER = 'give another --work-dir'
_OF_A_RUN = (LAST, NAME, FILE, 'results.csv', 'bad_batches.jsonl')  # beside its checkpoints


def allow_open_files() -> None:
    """Raise this process's limit on open files to what it may have: with workers each image in flight is one.

    A worker that has none left tries for ever, and the run waits for it.

    Raises:
        UserError: The limit is too low for any training.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    require(wanted >= _FEWEST, f'too many files would be open: a training needs a limit of at least {_FEWEST} (ulimit '
            '-n)', most)


def check_run_folder(folder: Path, config: str) -> None:
    """Refuse a work folder that can be written to, but not be trained in, before anything is made.

    Args:
        folder: It; it need not be there.
        config: The name of the config, which a run writes there.

    Raises:
        UserError: It cannot be looked into, one of a run's files in it cannot be read or is none, or another training
            is at work in it.
    """
    try:
        if folder.is_dir():
            os.scandir(folder).close()  # checkpoints that are not seen would be written over
        for path in (*(folder / name for name in (*_OF_A_RUN, config)), *folder.glob('*.pth')):
            if path.exists() and not path.is_file():  # a named pipe is waited for until somebody writes to it
                raise UserError(f'cannot train in {folder}: {path} is no file; remove it, or {_OTHER}')
        if os.path.lexists(folder / LAST):
            (folder / LAST).read_bytes()
        check_free(folder)
    except OSError as error:
        raise UserError(f'cannot train in {folder}: {error.filename or folder} cannot be read ({error.strerror}); mend '
                        f'or remove it, or {_OTHER}') from error


def whole_config(dump: Callable[[Runner], None]) -> Callable[[Runner], None]:
    """A runner's method that writes its config whole or not at all, and, resumed, with what the run began from; with
    epochs added to it, with what they were added to (:func:`.resume_choice.added_epochs`).
    """

    @wraps(dump)
    def dump_config(runner: Runner) -> None:
        if runner.cfg.filename is None or not is_main_process():
            return
        path = Path(runner.work_dir, Path(runner.cfg.filename).name)
        cfg = copy.deepcopy(runner.cfg)
        same = runner.cfg.get('resume') and not (runner.cfg.get('train_cfg') or {}).get('end_epoch')
        text = path.read_text(errors='replace') if same and path.is_file() else ''
        for name, value in re.findall(r'^(load_from|resume) *= *(.*)$', text, re.MULTILINE):
            with suppress(ValueError, SyntaxError):
                cfg[name] = ast.literal_eval(value)
        content = cfg.pretty_text.encode()
        write_together({path: lambda stream: stream.write(content)})

    return dump_config


def hold_folder(folder: Path) -> None:
    """Make a work folder, let no other training in until this one ends, and remove what killed ones left half written.

    Raises:
        UserError: It cannot be made or written to, or another training is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {folder}: {error.strerror}; {_OTHER}') from error
    hold(folder)
    remove_left_overs(folder)
