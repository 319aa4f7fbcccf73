"""best.pth: the best checkpoint under a stable name, also after a kill and a resume."""
from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine import BestCheckpointHook
from mgdet_plugin.engine.hooks import best_checkpoint_hook as module


@pytest.fixture
def runner(tmp_path) -> SimpleNamespace:
    """A runner that knows nothing yet."""
    return SimpleNamespace(work_dir=str(tmp_path), message_hub=MessageHub(f'best {tmp_path}'),
                           logger=logging.getLogger('best'))


def set_best(runner: SimpleNamespace, name: str, content: str | None = None) -> Path:
    """Make a file the best checkpoint, or name one that is not there."""
    path = Path(runner.work_dir, name)
    if content is not None:
        path.write_text(content)
    runner.message_hub.update_info('best_ckpt', str(path))
    return path


def best(runner: SimpleNamespace) -> Path:
    return Path(runner.work_dir, 'best.pth')


def test_the_best_is_copied_when_it_is_new(runner):
    hook = BestCheckpointHook()
    hook.before_train(runner)
    hook.after_val_epoch(runner, {})
    assert not best(runner).exists()
    for name in ('best_1.pth', 'best_2.pth'):
        set_best(runner, name, name)
        hook.after_val_epoch(runner, {})
        assert best(runner).read_text() == name
    assert sorted(path.name for path in best(runner).parent.iterdir()) == ['best.pth', 'best_1.pth', 'best_2.pth']


def test_a_resumed_run_copies_what_a_kill_left_out(runner):
    best(runner).write_text('older')
    set_best(runner, 'best_2.pth', 'newer')
    BestCheckpointHook().before_train(runner)
    assert best(runner).read_text() == 'newer'


def test_a_best_file_that_is_gone_leaves_the_copy(runner, caplog):
    best(runner).write_text('copy')
    set_best(runner, 'best_1.pth')
    BestCheckpointHook().before_train(runner)
    assert best(runner).read_text() == 'copy' and not caplog.records
    best(runner).unlink()
    BestCheckpointHook().before_train(runner)
    assert 'best_1.pth is gone' in caplog.text and not best(runner).exists()


def test_a_folder_that_moved_still_has_its_best(runner):
    set_best(runner, 'best_1.pth', 'moved')
    runner.message_hub.update_info('best_ckpt', '/somewhere/else/best_1.pth')
    BestCheckpointHook().before_train(runner)
    assert best(runner).read_text() == 'moved'


def test_a_failed_copy_leaves_the_one_before(runner, monkeypatch):
    hook = BestCheckpointHook()
    set_best(runner, 'best_1.pth', 'first')
    hook.after_val_epoch(runner, {})

    def fail(source, stream):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.shutil, 'copyfileobj', fail)
    set_best(runner, 'best_2.pth', 'second')
    with pytest.raises(UserError, match=r'best\.pth: No space left on device'):
        hook.after_val_epoch(runner, {})
    assert best(runner).read_text() == 'first'
