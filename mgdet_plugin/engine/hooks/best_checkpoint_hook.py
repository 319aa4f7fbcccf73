"""A stable name for the best checkpoint."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from mmdet.registry import HOOKS
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mgdet_plugin.common.files import write_together


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Keep ``<work_dir>/best.pth`` equal to the best checkpoint ``CheckpointHook(save_best=...)`` knows.

    The next stage's config reads that name. It is replaced in one step, so it is never half written. A resumed run
    copies at its start too: the run before may have been killed between the two files.
    """
    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self) -> None:
        self._copied: Path | None = None

    def before_train(self, runner: Runner) -> None:
        """Copy what a run before found best."""
        self._copy(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Copy the best checkpoint if it is a new one."""
        self._copy(runner)

    @master_only
    def _copy(self, runner: Runner) -> None:
        named = runner.message_hub.get_info('best_ckpt')
        if not named:
            return
        target = Path(runner.work_dir) / 'best.pth'
        places = Path(named), target.with_name(Path(named).name)  # the second where the folder has moved
        best = next((place for place in places if place.is_file()), None)
        if best is None and not target.is_file():
            runner.logger.warning(f'the best checkpoint {named} is gone: {target} appears with the next best one')
        if best is None or best == self._copied:
            return

        def copy(stream: BinaryIO) -> None:
            with best.open('rb') as source:
                shutil.copyfileobj(source, stream)

        write_together({target: copy})
        self._copied = best
