"""Save a checkpoint over and over in a child process that is killed at some moment.

Called as ``python tests/support/saving_loop.py PATH SECONDS...``: the parent prints nothing and ends when the child
is dead.
"""
from __future__ import annotations

import os
import signal
import sys
import time

import torch
from mmengine import runner

import mgdet_plugin  # noqa: F401  it patches what is imported already

SIZE = 500_000


def save_forever(path: str) -> None:
    """Save checkpoints whose every number is the number of the save."""
    epoch = 0
    while True:
        epoch += 1
        weight = torch.full((SIZE, ), float(epoch))
        runner.save_checkpoint({'state_dict': {'weight': weight}, 'meta': {'epoch': epoch}}, path)


def main(path: str, moments: list[float]) -> None:
    """Start and kill one child after another; the file of each is kept as PATH.N."""
    for number, seconds in enumerate(moments):
        child = os.fork()
        if child == 0:
            save_forever(path)
        while not os.path.exists(path):
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.replace(path, f'{path}.{number}')


if __name__ == '__main__':
    main(sys.argv[1], [float(value) for value in sys.argv[2:]])
