"""A module of the tests as two processes without a GPU that know of each other."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.compat.test_launch_compat import free_port
from tests.conftest import ROOT


def run_two(module: str, folder: Path, data: Path, timeout: float) -> None:
    """Run ``python -m MODULE FOLDER DATA`` as ranks 0 and 1, both of which must end well.

    Args:
        module: Its dotted name.
        folder: Where both work and their logs go.
        data: A folder of images.
        timeout: Seconds for each.
    """
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1',
           'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    logs = [folder / f'log{rank}' for rank in (0, 1)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open('w') as stream:
                processes.append(subprocess.Popen(
                    [sys.executable, '-W', 'ignore', '-m', module, str(folder), str(data)], cwd=folder,
                    env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}, stdout=stream, stderr=stream))
        codes = [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], '\n'.join(log.read_text()[-2000:] for log in logs)
