"""Checkpoints of a run: a whole one is there at every moment, and the best has a name of its own."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mgdet_plugin.common.files import write_together
from mgdet_plugin.engine.staged_run import staged_run


@HOOKS.register_module(name=['WholeCheckpointHook', 'CheckpointHook'])
class WholeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that saves first and removes then, and keeps ``<work_dir>/best.pth``.

    mmengine's removes first: with ``max_keep_ckpts=1``, and with the best checkpoint always, a save that fails leaves
    none, and ``last_checkpoint`` names a file that is gone. Here ``last_checkpoint`` and ``best.pth`` are replaced in
    one step. The next stage's config reads ``best.pth``, the best checkpoint of ``save_best`` with a single figure. A
    resumed run copies it at its start too: the run before may have been killed between the two files. Only files in
    the folder of the checkpoints are ever removed, whatever path a resumed checkpoint names as its best.

    In mmdet's scope ``type='CheckpointHook'`` means this one as well; ``type='mmengine.CheckpointHook'`` is mmengine's.
    Arguments are those of ``CheckpointHook``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._copied: Path | None = None

    def before_train(self, runner: Runner) -> None:
        """Take over what a resumed run kept, and copy what it found best."""
        ids = runner.message_hub.get_info('keep_ckpt_ids')
        if ids:  # mmengine makes names of them, and removes what has them
            runner.message_hub.update_info('keep_ckpt_ids', [each for each in ids if isinstance(each, int)])
        super().before_train(runner)
        self._copy_best(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save a checkpoint that is the best so far, under both names."""
        run = staged_run(runner)
        if run is None or not run.rolled_back:
            super().after_val_epoch(runner, metrics)
        self._copy_best(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """Save a checkpoint, let ``last_checkpoint`` name it, and remove the one that is too many."""
        outdated = []
        if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:  # a new best saves its epoch twice
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            content = str(self.last_ckpt).encode()
            write_together({Path(runner.work_dir, 'last_checkpoint'): lambda stream: stream.write(content)})
            self._remove(self.file_backend.join_path(self.out_dir, each) for each in outdated if each != name)

    @property
    def _best(self) -> dict[str, str | None]:
        """Path of the best checkpoint of each figure; mmengine keeps that of a single one apart."""
        return {'': self.best_ckpt_path} if len(self.key_indicators) == 1 else dict(self.best_ckpt_path_dict)

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = paths

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save the best checkpoint if this is a new one, and remove the one before."""
        if not self.save_best:
            return
        before = self._best
        self._best = dict.fromkeys(before)  # what is named here mmengine removes before it saves
        try:
            super()._save_best_checkpoint(runner, self._with_missing(runner, metrics))
        finally:
            self._best = {key: path or before[key] for key, path in self._best.items()}
        if is_main_process():
            own = self.file_backend.join_path(self.out_dir, 'best_')
            gone = [path for path in set(before.values()) - set(self._best.values())
                    if path and path.startswith(own) and path == self.file_backend.join_path(
                        self.out_dir, os.path.basename(path))]
            for path in self._remove(gone):
                runner.logger.info(f'The previous best checkpoint {path} is removed')

    def _with_missing(self, runner: Runner, metrics: dict[str, Any]) -> dict[str, Any]:
        """Metrics with None, which is never better, for the figure the best goes by where a validation lacks it.

        mmdet gives none of its figures where nothing was detected. Beside other figures, such as a validation loss,
        mmengine would end the run; alone it warns. A figure that is missing among others of its kind is misspelt, and
        still an error.
        """
        kinds = {name.rpartition('/')[0] for name in metrics}
        missing = [key for key in self.key_indicators
                   if key != 'auto' and key not in metrics and key.rpartition('/')[0] not in kinds]
        if missing:
            runner.logger.warning(f'the validation gives no {missing[0]}, as when nothing is detected: it has no best '
                                  'checkpoint')
        return {**metrics, **dict.fromkeys(missing)}

    def _remove(self, paths: Iterable[str]) -> list[str]:
        """Remove the checkpoints that are there; return those."""
        there = [path for path in paths if self.file_backend.exists(path)]
        for path in there:  # deepspeed saves folders
            (self.file_backend.rmtree if self.file_backend.isdir(path) else self.file_backend.remove)(path)
        return there

    @master_only
    def _copy_best(self, runner: Runner) -> None:
        """Make ``best.pth`` the best checkpoint, if it is not."""
        named = runner.message_hub.get_info('best_ckpt') if self.save_best else None
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


# In configs of runs begun before one hook did it all; it does nothing.
HOOKS.register_module(name='BestCheckpointHook', module=Hook)
