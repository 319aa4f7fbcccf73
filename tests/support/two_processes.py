"""A module of the tests as two processes without a GPU that know of each other."""
from __future__ import annotations

import signal
from pathlib import Path

from tests.compat.test_launch_compat import free_port
from tests.support.fork_server import environment, shared_server


def run_two(module: str, folder: Path, data: Path, timeout: float) -> None:
    """Run ``python -m MODULE FOLDER DATA`` as ranks 0 and 1, both of which must end well.

    Args:
        module: Its dotted name.
        folder: Where both work and their logs go.
        data: A folder of images.
        timeout: Seconds for each.
    """
    env = {**environment(), 'CUDA_VISIBLE_DEVICES': '-1', 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
           'MASTER_PORT': str(free_port())}
    logs = [folder / f'log{rank}' for rank in (0, 1)]
    processes = [shared_server().start(['-W', 'ignore', '-m', module, folder, data], folder, log,
                                       env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
                 for rank, log in enumerate(logs)]
    codes = [shared_server().wait(process, timeout) for process in processes]
    for process in processes:
        shared_server().signal(process, signal.SIGKILL)
    assert codes == [0, 0], '\n'.join(log.read_text()[-2000:] for log in logs)
