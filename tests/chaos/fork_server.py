"""A process that has imported all a training needs, and becomes a training in the time of a fork.

Called as ``python -m tests.chaos.fork_server``; :class:`ForkServer` is its other end. What a training is asked to do
comes as a line of JSON; a training is the real command, in a process group of its own, in a folder of its own.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.small_run import ROOT, environment


class ForkServer:
    """Starts trainings and knows how they ended. A context manager: at its end all are gone."""

    def __enter__(self) -> ForkServer:
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', 'tests.chaos.fork_server'], cwd=ROOT, text=True,
            env={**environment(), 'OMP_NUM_THREADS': '1'}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._live: set[int] = set()
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self._live):
            self.signal(process, signal.SIGKILL)
            self.wait(process, 60)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(self, folder: Path, *arguments: str, log: Path, fault: Mapping[str, Any] | None = None) -> int:
        """Begin ``train ARGUMENTS`` in a folder; its number.

        Args:
            folder: Where it is called.
            *arguments: The command line without the program's name.
            log: Takes what it says, at its end.
            fault: Arguments of :func:`tests.chaos.injections.inject`.
        """
        process = int(self._ask(start=[str(folder), list(arguments), str(log), dict(fault or {})]))
        self._live.add(process)
        return process

    def wait(self, process: int, timeout: float) -> int | None:
        """How a training ended, as ``Popen.returncode`` says it; None if it has not after so many seconds."""
        code: int | None = self._ask(wait=[process, timeout])
        if code is not None:
            self._live.discard(process)
        return code

    @staticmethod
    def signal(process: int, number: int) -> None:
        """Send a signal to a training and what it started, if it is there."""
        with suppress(ProcessLookupError):
            os.killpg(process, number)

    def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + '\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    prepare()
    for line in sys.stdin:
        question = json.loads(line)
        answer = start(*question['start']) if 'start' in question else wait(*question['wait'])
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


def prepare() -> None:
    """Import what a training imports, and leave out what takes most of a small one's time and writes nothing of it."""
    import mmdet.apis
    import mmdet.utils
    import mmengine.runner.runner
    import torch
    import torch._dynamo
    from mmdet.models.backbones.darknet import Darknet

    import mgdet_plugin.guard
    import mgdet_plugin.runs.analysis.evaluate
    from mgdet_plugin.cli.training import train  # noqa: F401
    from mgdet_plugin.engine import preflight  # noqa: F401
    assert mmdet.apis and mgdet_plugin.guard and mgdet_plugin.runs
    mmdet.utils.register_all_modules(init_default_scope=False)
    mmengine.runner.runner.collect_env = dict  # asks compilers for their versions
    Darknet.arch_settings = {53: ((1, ) * 5, Darknet.arch_settings[53][1])}  # a fourth of its layers
    torch.set_num_threads(1)


def start(folder: str, arguments: list[str], log: str, fault: dict[str, Any]) -> int:
    """Fork a training; its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(opened, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        sys.argv = ['tools/train.py', *arguments]
        from mgdet_plugin.cli import run
        from tests.chaos.injections import inject
        inject(**fault)
        run('train')
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code if isinstance(error.code, int) else 0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def wait(process: int, timeout: float) -> int | None:
    """The exit code of a training, None if it has none in time."""
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
