"""A stable name for the best checkpoint."""
from __future__ import annotations

import os
import shutil

from mmdet.registry import HOOKS
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Keep ``<work_dir>/best.pth`` equal to the best checkpoint ``CheckpointHook(save_best=...)`` knows.

    The next stage's config reads that name. It is replaced in one step, so it is never half written.
    """
    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self) -> None:
        self._copied = ''

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Copy the best checkpoint if it is a new one."""
        best = runner.message_hub.get_info('best_ckpt')
        if not best or best == self._copied or not os.path.exists(best):
            return
        target = os.path.join(runner.work_dir, 'best.pth')
        part = f'{target}.part'
        shutil.copyfile(best, part)
        with open(part, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(part, target)
        self._copied = best
