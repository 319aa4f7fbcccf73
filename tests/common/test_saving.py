"""Saves that are killed or fail: a whole checkpoint is always there, and the failure is told."""
from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.fileio import BaseStorageBackend, FileClient, register_backend
from mmengine.runner import save_checkpoint

from mgdet_plugin.common.errors import UserError


def make_checkpoint(epoch: int, size: int = 100_000) -> dict:
    """Return a checkpoint whose every number is its epoch."""
    return {'state_dict': {'weight': torch.full((size, ), float(epoch))}, 'meta': {'epoch': epoch}}


def is_whole(path: Path) -> bool:
    """Tell whether a checkpoint loads and its numbers are of one save."""
    content = torch.load(path)
    return bool((content['state_dict']['weight'] == content['meta']['epoch']).all())


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow over a size in the block, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_child(action: Callable[[], object]) -> int:
    """Do something in a child process and return its number."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # those of the parent are not there
            action()
        finally:
            os._exit(1)
    return child


def save_forever(path: Path) -> None:
    for epoch in itertools.count(1):
        save_checkpoint(make_checkpoint(epoch, 500_000), str(path))


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, moments = tmp_path / 'saved.pth', [random.uniform(0, 0.06) for _ in range(30)]
    for number, seconds in enumerate(moments):
        child = in_child(lambda: save_forever(path))
        while not path.exists():
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        path.rename(f'{path}.{number}')
    files = sorted(tmp_path.glob('saved.pth.*'))
    assert len(files) == len(moments)
    assert all(map(is_whole, files))
    left = list(tmp_path.glob('.saved.pth.*'))
    assert len(left) <= 1, 'what a killed save leaves is removed by the next'
    save_checkpoint(make_checkpoint(1), str(path))
    assert not list(tmp_path.glob('.saved.pth.*'))


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_kill_at_the_last_step_leaves_a_whole_checkpoint(call, tmp_path):
    path = tmp_path / 'saved.pth'
    save_checkpoint(make_checkpoint(1), str(path))

    def save_and_die() -> None:
        setattr(os, call, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        save_checkpoint(make_checkpoint(2), str(path))

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(save_and_die), 0)[1]) == -signal.SIGKILL
    assert is_whole(path) and torch.load(path)['meta']['epoch'] == 1
    assert len(list(tmp_path.glob('.saved.pth.*'))) == 1
    save_checkpoint(make_checkpoint(3), str(path))
    assert torch.load(path)['meta']['epoch'] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_failed_save_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    save_checkpoint(make_checkpoint(1), str(path))
    with pytest.raises(UserError, match=r'cannot write \S+epoch_1\.pth: File too large; .*as it was') as caught, \
            room_for(50_000):
        save_checkpoint(make_checkpoint(2), str(path))
    assert '\n' not in str(caught.value)
    assert is_whole(path) and torch.load(path)['meta']['epoch'] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'no folder \S+file/run can be made: Not a directory'):
        save_checkpoint(make_checkpoint(1), str(tmp_path / 'file' / 'run' / 'epoch_1.pth'))


def test_only_left_overs_of_dead_processes_are_removed(tmp_path):
    dead, living, other = (tmp_path / name for name in (
        '.saved.pth.999999999.tmp', f'.saved.pth.{os.getppid()}.tmp', '.saved.pth.mine.tmp'))
    for path in (dead, living, other):
        path.touch()
    save_checkpoint(make_checkpoint(1), str(tmp_path / 'saved.pth'))
    assert [path.exists() for path in (dead, living, other)] == [False, True, True]


def test_a_remote_backend_keeps_its_own_way():
    class Remote(BaseStorageBackend):
        stored: dict = {}

        def get(self, filepath):
            return self.stored[filepath]

        def get_text(self, filepath):
            return self.stored[filepath]

        def put(self, obj, filepath):
            self.stored[filepath] = obj

    register_backend('mgdet_test_remote', Remote, prefixes='mgdet-test', force=True)
    FileClient.register_backend('mgdet_test_remote', Remote, prefixes='mgdet-test', force=True)
    save_checkpoint(make_checkpoint(1), 'mgdet-test://bucket/a.pth')
    assert list(Remote.stored) == ['mgdet-test://bucket/a.pth']
