"""What a machine or another process did to a training, in a line: libraries say it in tracebacks of many processes."""
from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.queues import Queue

from mgdet_plugin.common.errors import UserError

_GO_ON = '--resume goes on from the newest checkpoint'
_SAYINGS = (
    (rf'exit code {errno.ENOSPC}\b|unable to (mmap|open shared memory|allocate shared memory|write to file)|'
     r'out of shared memory|insufficient shared memory|torch_shm_manager',
     'the processes that load images have no room left in shared memory (/dev/shm): make it larger (docker run '
     '--shm-size=2g) or set num_workers=0, persistent_workers=False in the dataloaders'),
    (r'DataLoader worker.*(exited unexpectedly|is killed by signal)',
     'a process that loads images was killed, most often because memory ran out: set fewer num_workers or a smaller '
     'batch_size in train_dataloader'),
    (r"can't allocate memory|CUDA out of memory|Cannot allocate memory|can't start new thread",
     'memory ran out: set a smaller batch_size or fewer num_workers in train_dataloader'),
    (r'Too many open files|received 0 items of ancdata',
     'too many files are open: raise the limit (ulimit -n 4096) or set fewer num_workers in the dataloaders'),
    (r'gloo|Socket Timeout|Connection (reset|closed) by peer|ProcessGroupNCCL|NCCL (error|communicator)|Broken pipe',
     'another process of the launch ended, or did not answer within env_cfg.dist_cfg.timeout seconds: what it said '
     'last comes first; start all of them again'))
"""What an error says -> what that means and what to do; the first that fits."""
_NUMBERS = {errno.EMFILE: 'Too many open files', errno.ENFILE: 'Too many open files',
            errno.ENOMEM: "can't allocate memory"}


@contextmanager
def exhaustion_told() -> Iterator[None]:
    """Turn what the block raises where the machine gave out, or another process ended, into one line.

    A line that a full disk keeps out of the log file is lost in silence: the run's own files, which follow, end it.
    A process that loads images and cannot give one away would drop it, and the run wait for it for ever: here it ends.

    Raises:
        UserError: It did.
    """
    told, logging.raiseExceptions = logging.raiseExceptions, False  # a traceback for each line that is not written
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    try:
        yield
    except (RuntimeError, MemoryError, OSError, UserError) as error:
        # what is said of a picture or a figure may be what happened to the process while it was at it
        origin = error.__cause__ or error.__context__ if isinstance(error, UserError) else error
        seen = _in_words(origin)
        for pattern, meaning in _SAYINGS:
            if re.search(pattern, seen):
                first = ' '.join((str(origin).strip() or type(origin).__name__).splitlines()[0].split())
                raise UserError(f'{meaning}; {_GO_ON} ({first[:160]})') from error
        raise
    finally:
        logging.raiseExceptions = told


def _end_worker(error: BaseException, _: object) -> None:
    """End a process that cannot give away what it made; in the run's own there is nothing to end."""
    print(f'a process that loads images: {error}', file=sys.stderr, flush=True)
    if parent_process() is not None:
        os._exit(errno.ENOSPC)


def _in_words(error: BaseException | None) -> str:
    """What an error and those that led to it say."""
    seen: list[str] = []
    link = error
    while link is not None and len(seen) < 10:
        number = errno.ENOMEM if isinstance(link, MemoryError) else getattr(link, 'errno', None)
        seen.append(f'{link} {_NUMBERS.get(number or 0, "")}')
        link = link.__cause__ or link.__context__
    return '\n'.join(seen)
