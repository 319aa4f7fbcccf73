"""Checkpoints of a run: a whole one is there at every moment, and the best has a name of its own."""
from __future__ import annotations

import glob
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mgdet_plugin.common.checkpoints import load_checkpoint, run_of
from mgdet_plugin.common.errors import UserError, is_number, is_whole
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.guard_record import keeps, merit
from mgdet_plugin.common.metric_names import AUTO, expected_of, is_mean_ap, kind_of, mean_aps, prefix_of
from mgdet_plugin.engine.staged_run import staged_run
from mgdet_plugin.engine.transitions import INTERRUPTED, LAST

OUTDATED = 'outdated_ckpt_ids'  # in the log's state: those to be removed once it is saved
KEPT = 'best_kept'  # share of the old domain that the best checkpoint keeps, beside mmengine's best_score


@HOOKS.register_module(name=['WholeCheckpointHook', 'CheckpointHook'])
class WholeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that saves first and removes then, and keeps ``<work_dir>/best.pth``.

    mmengine's removes first: with ``max_keep_ckpts=1``, and with the best checkpoint always, a save that fails leaves
    none, and ``last_checkpoint`` names a file that is gone. Here ``last_checkpoint`` and ``best.pth`` are replaced in
    one step. The next stage's config reads ``best.pth``, the best checkpoint of ``save_best`` with a single figure. A
    resumed run copies it at its start too: the run before may have been killed between the two files.

    ``save_best='auto'`` is the evaluator's mean AP, whichever metric gives it; mmengine's is the first figure there is,
    which is a loss where CocoMetric detects nothing.

    With the config's ``keep`` the best is the best among the validations that keep enough of the old domain; until one
    does, it is the one that keeps most.

    What a resumed checkpoint names as the best is looked for in this run's folder alone, under the name this hook gives
    it: a path in a checkpoint may be anybody's. Where it is not there, the best begins anew.

    In mmdet's scope ``type='CheckpointHook'`` means this one as well; ``type='mmengine.CheckpointHook'`` is mmengine's.
    Arguments are those of ``CheckpointHook``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._copied: Path | None = None

    def before_train(self, runner: Runner) -> None:
        """Settle what the best goes by, take over what a resumed run kept, and copy what it found best."""
        ids = runner.message_hub.get_info('keep_ckpt_ids')
        if ids:  # mmengine makes names of them, and removes what has them
            listed = ids if isinstance(ids, list) else []
            runner.message_hub.update_info('keep_ckpt_ids', [each for each in listed if isinstance(each, int)])
        super().before_train(runner)
        if self.save_best:
            self._go_by(next(iter(expected_of(_metrics(runner.val_loop))), None))
            self._keep_own_best(runner)
        self._complete(runner)
        self._copy_best(runner)

    @master_only
    def _complete(self, runner: Runner) -> None:
        """Do what a killed run had left to do after it saved the checkpoint that is resumed.

        That names the checkpoint that was too many by its number. Of best ones there is one a figure. Only files that
        this run wrote are removed.
        """
        run = staged_run(runner)
        if run is None or not run.progress.run or not runner._resume:
            return
        named = Path(str(runner._load_from))
        best = {Path(each).name for each in self._best.values() if each} if self.save_best else set()
        last = Path(self.out_dir, named.name)
        if last.is_file() and named.is_file() and last.samefile(named):
            self._name_last(runner, str(last))
            if last.name == self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter):
                self.last_ckpt = str(last)  # a validation that is made up for saves it again, as it would have
        hub = runner.message_hub
        outdated = hub.get_info(OUTDATED) if OUTDATED in hub.runtime_info else []
        numbers = {each for each in outdated if is_whole(each, 0)} if isinstance(outdated, list) else set()
        numbers -= {*getattr(self, 'keep_ckpt_ids', ())}
        left = [Path(self.out_dir, self.filename_tmpl.format(each)) for each in sorted(numbers)]
        for figure in self.key_indicators if self.save_best else ():
            template = glob.escape(f'best_{figure}_{self.filename_tmpl}'.replace('/', '_')).replace('{}', '*')
            left += [each for each in Path(self.out_dir).glob(template) if each.name not in best]
        for path in left:
            if path.is_file() and _is_of(path, run.progress.run, runner.epoch):
                path.unlink()
                runner.logger.info(f'{path} is removed: the run was stopped before it could')

    def after_train(self, runner: Runner) -> None:
        """Let ``last_checkpoint`` name the last epoch's again where a run was interrupted in the validation after it.
        """
        last = runner.message_hub.get_info('last_ckpt') if 'last_ckpt' in runner.message_hub.runtime_info else None
        if self.by_epoch and is_main_process() and last and Path(last).is_file():
            self._name_last(runner, str(last))

    def _name_last(self, runner: Runner, path: str) -> None:
        """Let ``last_checkpoint`` name a checkpoint; that of an interruption is behind, unless it is this one."""
        pointer, content = Path(runner.work_dir, LAST), path.encode()
        if not pointer.is_file() or pointer.read_bytes() != content:
            write_together({pointer: lambda stream: stream.write(content)})
        if Path(path).name != INTERRUPTED:
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)

    def _go_by(self, name: str | None) -> None:
        """Put the name of a figure in the place of 'auto'."""
        if name and self.key_indicators == [AUTO]:
            self._init_rule(['greater'] if self.rules == [None] and is_mean_ap(name) else self.rules, [name])

    def _keep_own_best(self, runner: Runner) -> None:
        """Of the best checkpoints a resumed one names, keep those that are files of this run; drop the others."""
        info = runner.message_hub.runtime_info
        for key in [key for key in info if key.startswith('best_ckpt')]:
            named, score_key = info[key], key.replace('best_ckpt', 'best_score', 1)
            figure = key.removeprefix('best_ckpt').removeprefix('_') or (
                '' if self.key_indicators == [AUTO] else self.key_indicators[0])
            name = os.path.basename(str(named))
            own = Path(self.file_backend.join_path(self.out_dir, name))
            score = info.get(score_key)
            begins = f'best_{figure}_'.replace('/', '_') if figure else 'best_'
            valid = name.startswith(begins) and is_number(score) and math.isfinite(score)
            copied = str(own) == named and not own.exists() and Path(runner.work_dir, 'best.pth').is_file()
            if valid and (own.is_file() or copied):  # copied: removed by hand since; what is better is still told
                info[key] = str(own)
                continue
            del info[key]  # what is not named here is neither copied nor removed
            info.pop(score_key, None)
            info.pop(key.replace('best_ckpt', KEPT, 1), None)
            runner.logger.warning(f'the checkpoint resumed from names {named!r} as its best, and there is no such '
                                  f'checkpoint of this run in {self.out_dir}: the next validation is the best so far')
        single = len(self.key_indicators) == 1
        self._best = {'' if single else each: info.get('best_ckpt' if single else f'best_ckpt_{each}')
                      for each in self.key_indicators}

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
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            runner.message_hub.update_info(OUTDATED, outdated)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            self._name_last(runner, str(self.last_ckpt))
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(each))
                         for each in outdated if each != step)

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
        whole = self._with_missing(runner, metrics)
        if self.key_indicators == [AUTO]:
            return
        whole = self._with_kept(runner, whole)
        before = self._best
        self._best = dict.fromkeys(before)  # what is named here mmengine removes before it saves
        try:
            super()._save_best_checkpoint(runner, whole)
        finally:
            self._best = {key: path or before[key] for key, path in self._best.items()}
        if is_main_process():
            for path in self._remove(set(filter(None, before.values())) - set(self._best.values())):
                runner.logger.info(f'The previous best checkpoint {path} is removed')

    def _with_missing(self, runner: Runner, metrics: dict[str, Any]) -> dict[str, Any]:
        """Metrics with None, which is never better, for the figure the best goes by where a validation lacks it.

        CocoMetric gives none of its figures where nothing was detected. Beside other figures, such as a validation
        loss, mmengine would end the run; alone it warns.

        Raises:
            UserError: The figure is missing among others of its kind, or no evaluator gives its kind.
        """
        own = {prefix_of(type(each), vars(each)) for each in _metrics(runner.val_loop)}
        others = {f'{domain}/{prefix_of(type(each), vars(each))}'.rstrip('/')
                  for domain, loop in getattr(runner.val_loop, 'others', {}).items() for each in _metrics(loop)}
        found = [name for name in metrics if not own or kind_of(name) in own]
        self._go_by(next(iter([*mean_aps(found), *found]), None))  # of an evaluator whose names are not known before
        missing = [key for key in self.key_indicators if key not in metrics]
        wrong = [key for key in missing if key != AUTO and (
            kind_of(key) in map(kind_of, metrics) or (own and kind_of(key) not in own | others))]
        if wrong:
            raise UserError(f'the best checkpoint goes by {wrong[0]} (default_hooks.checkpoint.save_best), which the '
                            f"validation does not give; it gives {', '.join(metrics)}; set save_best='auto'")
        if missing:
            what = 'metric' if missing == [AUTO] else missing[0]
            runner.logger.warning(f'the validation gives no {what}, as when nothing is detected: it has no best '
                                  'checkpoint')
        return {**metrics, **dict.fromkeys(missing)}

    def _with_kept(self, runner: Runner, metrics: dict[str, Any]) -> dict[str, Any]:
        """Metrics with None for a figure where, by what is kept, this validation is no new best one.

        Where it is one, whatever the figure, the score to beat is taken away.
        """
        run, hub, found = staged_run(runner), runner.message_hub, dict(metrics)
        kept = run.kept if run is not None else None
        if kept is None and run is not None and getattr(run.plan, 'keep', None) is not None:
            runner.logger.warning('what is left of the old domain is not known, as no guard (default hook drift_guard) '
                                  'has measured it or the loaded weights find nothing there: the best checkpoint goes '
                                  'by the new images alone')
        for key, rule in zip(self.key_indicators, self.rules):
            name, score = '' if len(self.key_indicators) == 1 else f'_{key}', found[key]
            if kept is None:
                hub.runtime_info.pop(KEPT + name, None)  # of a run that goes on without ``keep``
            elif score is not None and math.isfinite(score):
                best = hub.runtime_info.get(f'best_score{name}')
                share = hub.runtime_info.get(KEPT + name)
                share = share if is_number(share) and math.isfinite(share) else -math.inf  # begun without ``keep``
                sign = 1 if rule == 'greater' else -1
                better = best is None or merit(sign * score, *kept) > merit(sign * best, share, kept[1])
                if better:
                    hub.runtime_info.pop(f'best_score{name}', None)
                    hub.update_info(KEPT + name, kept[0])  # now, for it goes into what is saved
                else:
                    found[key] = None
                if not keeps(*kept):
                    runner.logger.info(f'{kept[0]:.1%} of the old domain is left, at least {kept[1] * 100:.4g}% is '
                                       f'asked: {"the best until one keeps enough" if better else "not the best"}')
        return found

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
        if not named or not Path(named).is_file() or Path(named) == self._copied:
            return

        def copy(stream: BinaryIO) -> None:
            with Path(named).open('rb') as source:
                shutil.copyfileobj(source, stream)

        write_together({Path(runner.work_dir) / 'best.pth': copy})
        self._copied = Path(named)


def _is_of(path: Path, run: str, epoch: int) -> bool:
    """Whether a checkpoint is one that a run saved in its first so many epochs."""
    try:
        content = load_checkpoint(path, mmap=True)[1]
    except UserError:
        return False
    saved = content.get('meta', {}).get('epoch')
    return run_of(content) == run and isinstance(saved, int) and saved <= epoch


def _metrics(loop: Any) -> list[Any]:
    """The metrics of a validation loop; none without one."""
    return list(loop.evaluator.metrics) if loop is not None else []


# In configs of runs begun before one hook did it all; it does nothing.
HOOKS.register_module(name='BestCheckpointHook', module=Hook)
