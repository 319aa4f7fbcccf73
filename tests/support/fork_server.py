"""A process that has imported what our commands import, and becomes any ``python FILE ...`` in the time of a fork.

Called as ``python -m tests.support.fork_server``; :class:`ForkServer` is its other end. What it is asked to do comes as
a line of JSON. What it becomes is a process of its own, in a group of its own, with its own arguments, folder,
environment and output; it only finds imported what it would import itself, and does not take itself apart at its end,
which would copy all that it shares with the server. Tests of imports, of launchers, of pipes and of memory start an
interpreter themselves.
"""
from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
READ_AT_START = ('PYTHON', 'LC_', 'LANG', 'OMP_', 'MKL_', 'KMP_', 'OPENBLAS_', 'OPENCV_', 'MPL', 'TORCH', 'COVERAGE')
"""Beginnings of the variables that the interpreter or a library reads once: with others than the server's a process is
an interpreter started anew."""
Setup = tuple[str, Mapping[str, Any]]


class ForkServer:
    """Starts processes and knows how they ended. A context manager: at its end all are gone."""

    def __enter__(self) -> ForkServer:
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'tests.support.fork_server'], cwd=ROOT, text=True, env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._live: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._live):
            self.signal(process, signal.SIGKILL)
            self.wait(process, 60)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, arguments: Sequence[str | Path], cwd: Path, output: Path, errors: Path | None = None,
              env: Mapping[str, str] | None = None, setup: Setup | None = None) -> int:
        """Begin ``python ARGUMENTS``; its number.

        Args:
            arguments: A file, or ``-m`` and a module, and the rest of the command line; ``-W ignore`` may come first.
            cwd: Where it is called.
            output: Takes what it says, at its end.
            errors: Takes standard error, if another.
            env: Its environment; :func:`environment` if None.
            setup: 'module:function' that it calls first, and its arguments; it is then always forked.
        """
        process = int(self._ask(start=[list(map(str, arguments)), str(cwd), str(output), str(errors or output),
                                       dict(environment() if env is None else env), setup]))
        self._live.add(process)
        return process

    def wait(self, process: int, timeout: float) -> int | None:
        """How a process ended, as ``Popen.returncode`` says it; None if it has not after so many seconds."""
        code: int | None = self._ask(wait=[process, timeout])
        if code is not None:
            self._live.discard(process)
        return code

    def run(self, arguments: Sequence[str | Path], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """``subprocess.run`` of ``python ARGUMENTS`` with its text captured.

        Raises:
            TimeoutExpired: It has been killed after so many seconds.
        """
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder, 'output'), Path(folder, 'errors')
            process = self.start(arguments, cwd, *said)
            code = self.wait(process, timeout)
            if code is None:
                self.signal(process, signal.SIGKILL)
                self.wait(process, 60)
                raise subprocess.TimeoutExpired(arguments, timeout, *(each.read_bytes() for each in said))
            return subprocess.CompletedProcess(arguments, code, *(each.read_text() for each in said))

    @staticmethod
    def signal(process: int, number: int) -> None:
        """Send a signal to a process and what it started, if it is there."""
        with suppress(ProcessLookupError):
            os.killpg(process, number)

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + '\n')
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, 'the fork server has ended; what it said is on standard error'
        return json.loads(answer)


@functools.cache
def shared_server() -> ForkServer:
    """The server of this process, which ends with it."""
    server = ForkServer().__enter__()
    atexit.register(server.__exit__)
    return server


def environment() -> dict[str, str]:
    """That of this process, with the package importable; it need not be installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def serve() -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    started = dict(os.environ)
    forks = prepare()
    gc.freeze()  # else a new process copies every page that its first collection looks at
    for line in sys.stdin:
        question = json.loads(line)
        answer = wait(*question['wait']) if 'wait' in question else (
            os.fork() or end(*question['start'], started if forks else None))
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


def prepare() -> bool:
    """Import what commands import; whether a fork can be one: where there is a GPU, it can be used in one process."""
    for name in ('mgdet_plugin', 'torch._dynamo', 'mmdet.apis', 'mgdet_plugin.guard', 'mgdet_plugin.engine.preflight',
                 'mgdet_plugin.runs.analysis.evaluate'):
        importlib.import_module(name)
    from mmdet.utils import register_all_modules

    from mgdet_plugin.cli import COMMANDS
    from mgdet_plugin.compat.launch import has_accelerator
    register_all_modules(init_default_scope=False)
    for command, room in COMMANDS.items():
        importlib.import_module(f'mgdet_plugin.cli.{room}.{command}')
    return not has_accelerator()


def end(*start: Any) -> NoReturn:
    """Be another process and do at its end what an interpreter does, but for taking itself apart."""
    code: object = None
    try:
        become(*start)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, (int, type(None))):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # type: ignore[arg-type]


def become(arguments: list[str], cwd: str, output: str, errors: str, env: dict[str, str], setup: Setup | None,
           started: Mapping[str, str] | None) -> None:
    """Be ``python ARGUMENTS`` in this new process.

    ``started`` is the environment that the server imported everything in; None if no fork may use that.
    """
    os.setpgid(0, 0)
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, output, os.O_WRONLY), (2, errors, os.O_WRONLY)):
        opened = os.open(path, flags | (number and os.O_CREAT | os.O_APPEND), 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    if setup is None and (started is None or any(
            env.get(name) != started.get(name) for name in {*env, *started} if name.startswith(READ_AT_START))):
        os.execve(sys.executable, [sys.executable, *arguments], env)
    changed = {name: value for name, value in os.environ.items() if started and value != started.get(name)}
    _forget(arguments, {**env, **changed})  # what imports have set they would set again
    if arguments[:2] == ['-W', 'ignore']:
        warnings.simplefilter('ignore')
        del arguments[:2]
    file = Path(arguments[0])
    code = None if arguments[0] == '-m' else compile(file.read_bytes(), file, 'exec')
    if setup is not None:
        module, _, function = setup[0].partition(':')
        getattr(importlib.import_module(module), function)(**setup[1])
    if code is None:
        sys.argv, sys.path[0] = arguments[1:], cwd
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
        return
    sys.argv, sys.path[0] = arguments, str(file.resolve().parent)
    main = sys.modules['__main__'] = ModuleType('__main__')
    main.__file__ = str(file)
    exec(code, vars(main))


def _forget(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Leave behind what the server has that a new interpreter draws, reads or looks for itself."""
    import numpy as np
    sys.orig_argv = [sys.executable, *arguments]
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None
    sys.stdin = os.fdopen(0)  # the server's has read ahead
    np.random.seed()


def wait(process: int, timeout: float) -> int | None:
    """The exit code of a process, None if it has none in time."""
    end = time.monotonic() + timeout
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


if __name__ == '__main__':
    serve()
