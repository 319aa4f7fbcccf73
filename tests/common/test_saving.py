"""Saves that are killed or fail: a whole checkpoint is always there, and the failure is told."""
from __future__ import annotations

import logging
import os
import random
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import BaseStorageBackend, FileClient, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub
from mmengine.runner import save_checkpoint

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.compat.checkpoint_patches import open_whole
from tests.compat.test_checkpoint_compat import SUPPORT, run_script
from tests.support.toy_run import make_runner


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


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    moments = [random.uniform(0, 0.06) for _ in range(30)]
    done = run_script(SUPPORT / 'saving_loop.py', tmp_path / 'saved.pth', *moments)
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob('saved.pth.*'))
    assert len(files) == len(moments)
    assert all(map(is_whole, files))
    left = list(tmp_path.glob('.saved.pth.*'))
    assert len(left) <= 1, 'what a killed save leaves is removed by the next'
    save_checkpoint(make_checkpoint(1), str(tmp_path / 'saved.pth'))
    assert not list(tmp_path.glob('.saved.pth.*'))


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_kill_at_the_last_step_leaves_a_whole_checkpoint(call, tmp_path):
    path = tmp_path / 'saved.pth'
    save_checkpoint(make_checkpoint(1), str(path))
    code = ('import os, signal, mgdet_plugin, torch; from mmengine.runner import save_checkpoint\n'
            f'os.{call} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n'
            f'save_checkpoint(dict(state_dict=dict(weight=torch.ones(9)), meta=dict(epoch=2)), {str(path)!r})')
    assert run_script('-c', code).returncode == -signal.SIGKILL
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


def test_a_training_run_whose_save_fails_ends_with_that_line(tmp_path, monkeypatch):
    save = torch.save

    def fail_at_epoch_2(content, stream):
        save(content, stream)
        if content['meta']['epoch'] == 2:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail_at_epoch_2)
    with pytest.raises(UserError, match=r'cannot write \S+epoch_2\.pth: No space left on device'):
        make_runner(tmp_path).train()
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    assert torch.load(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth'] and not list(tmp_path.glob('.epoch*'))


def test_only_left_overs_of_dead_processes_are_removed(tmp_path):
    dead, living, other = (tmp_path / name for name in (
        '.saved.pth.999999999.tmp', f'.saved.pth.{os.getppid()}.tmp', '.saved.pth.mine.tmp'))
    for path in (dead, living, other):
        path.touch()
    save_checkpoint(make_checkpoint(1), str(tmp_path / 'saved.pth'))
    assert [path.exists() for path in (dead, living, other)] == [False, True, True]


def test_several_files_appear_together_or_not_at_all(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    for path in paths:
        path.write_text('before')

    def fail(stream):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match=r'cannot write \S+b: No space left on device'):
        write_together({paths[0]: lambda stream: stream.write(b'after'), paths[1]: fail})
    assert [path.read_text() for path in paths] == ['before', 'before']
    assert sorted(tmp_path.iterdir()) == paths


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


def test_last_checkpoint_is_written_whole(tmp_path):
    path = tmp_path / 'last_checkpoint'
    path.write_text('before')
    with pytest.raises(RuntimeError), open_whole(str(path)) as stream:
        stream.write('half')
        raise RuntimeError
    assert path.read_text() == 'before'
    assert CheckpointHook._save_checkpoint_with_step.__wrapped__.__globals__['open'] is open_whole


def make_hook_and_runner(folder: Path, **fields) -> tuple[CheckpointHook, SimpleNamespace]:
    """Return mmengine's hook before a training and a runner that saves empty files, or fails where ``full``."""
    runner = SimpleNamespace(work_dir=str(folder), logger=logging.getLogger(), epoch=0, iter=0, full=False,
                             message_hub=MessageHub(f'hook {folder}'))

    def save(out_dir: str, filename: str, *_args, **_kwargs) -> None:
        if runner.full:
            raise UserError('cannot write')
        Path(out_dir, filename).write_text(str(runner.epoch))

    runner.save_checkpoint = save
    hook = CheckpointHook(interval=1, **fields)
    hook.before_train(runner)
    return hook, runner


@pytest.mark.parametrize('keep', [1, 2])
def test_a_failed_save_removes_no_older_checkpoint(keep, tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, max_keep_ckpts=keep)
    for runner.epoch in range(keep):
        hook._save_checkpoint(runner)
    kept = sorted(path.name for path in tmp_path.iterdir())
    runner.epoch, runner.full = keep, True
    with pytest.raises(UserError):
        hook._save_checkpoint(runner)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept == [
        *(f'epoch_{epoch + 1}.pth' for epoch in range(keep)), 'last_checkpoint']
    assert Path((tmp_path / 'last_checkpoint').read_text()).is_file()


def test_older_checkpoints_are_removed_in_the_end(tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, max_keep_ckpts=1)
    for runner.epoch in range(3):
        hook._save_checkpoint(runner)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['epoch_3.pth', 'last_checkpoint']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


def test_a_failed_save_keeps_the_best_checkpoint(tmp_path):
    hook, runner = make_hook_and_runner(tmp_path, save_best='mAP')
    runner.epoch = 1
    hook.after_val_epoch(runner, {'mAP': 0.5})
    runner.epoch, runner.full = 2, True
    with pytest.raises(UserError):
        hook.after_val_epoch(runner, {'mAP': 0.6})
    assert (tmp_path / 'best_mAP_epoch_1.pth').is_file()
    runner.full = False
    hook.after_val_epoch(runner, {'mAP': 0.7})  # the same name as the last, which is not to be removed
    hook.after_val_epoch(runner, {'mAP': 0.8})
    assert [path.name for path in tmp_path.glob('best*')] == ['best_mAP_epoch_1.pth', 'best_mAP_epoch_2.pth']
    runner.epoch = 3
    hook.after_val_epoch(runner, {'mAP': 0.9})
    assert (tmp_path / 'best_mAP_epoch_3.pth').is_file() and not (tmp_path / 'best_mAP_epoch_2.pth').exists()
