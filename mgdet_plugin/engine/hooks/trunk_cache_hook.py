"""Lets the frozen part of a detector look at each image once a stage, as the config's ``trunk_cache`` says."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mgdet_plugin.common.array_store import ArrayStore
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.compat.console import SAID
from mgdet_plugin.datasets.staged.sample_index import kept_randomness
from mgdet_plugin.datasets.staged.staged_dataset import StagedDataset
from mgdet_plugin.engine.optim.moving_average import ema_hooks
from mgdet_plugin.engine.staged_run import StagedRun, staged_run
from mgdet_plugin.engine.trunk_cache import TrunkCache, is_steady
from mgdet_plugin.models.multigrid_detector import MultiGridDet
from mgdet_plugin.plan.caching import TrunkCaching
from mgdet_plugin.plan.freezing import frozen_of, trunk_of, unwrap
from mgdet_plugin.plan.keeping import form_of


@HOOKS.register_module()
class TrunkCacheHook(Hook):
    """Carry out the config's ``trunk_cache``; ``StagedTrainLoop`` registers it where there is one.

    It acts in each stage that freezes the backbone, or more, and shows each image as it did before; what it keeps ends
    with the stage.

    Args:
        caching: What it is told.

    Attributes:
        cache: That of the current stage, None where it has none.
    """
    priority = 71  # after StagedUnfreezeHook (LOW, 70) has frozen, before KeepHook and the guard measure

    def __init__(self, caching: TrunkCaching) -> None:
        self.caching = caching
        self.cache: TrunkCache | None = None
        self._stage, self._said = -1, False
        self._reasons: list[str] = []

    def before_train(self, runner: Runner) -> None:
        """Find the stages that can use it, and begin in the current one if it can.

        Raises:
            UserError: None can.
        """
        run, model = _run_of(runner), unwrap(runner.model)
        if not isinstance(model, MultiGridDet):
            raise UserError(f'trunk_cache is for MultiGridDet, and the model is a {type(model).__name__}; take '
                            'trunk_cache out')
        with kept_randomness():
            self._reasons = [_reason(runner, run, index) for index in range(len(run.plan.stages))]
        if all(self._reasons):
            raise UserError('trunk_cache keeps what the frozen part gives for images that stay as they are, and no '
                            'stage has both: ' + '; '.join(self._reasons) + '; change that, or take trunk_cache out')
        self._enter(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Follow the stages."""
        self._enter(runner)
        self._look_again(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Notice weights that are others for the time of a validation."""
        self._look_again(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say once a stage what is kept: an image's size is known now."""
        if self.cache is None or self._said or not self.cache.image_bytes:
            return
        self._said, size, images = True, self.cache.image_bytes, _images(runner)
        room = int(self.cache.store.at_most * get_world_size() // size)
        fit = f'all {images:,} fit' if room >= images else (
            f'{room:,} of {images:,} fit, the others are computed each time')
        runner.logger.info(f"trunk cache: stage '{_run_of(runner).stage.name}' computes each image once as far as "
                           f'{self.cache.last}, {size / 2 ** 20:.3g} MB an image in {self.caching.dtype}; {fit} into '
                           f'{self.caching.where} of at most {self.caching.at_most}', extra=SAID)

    def after_train_epoch(self, runner: Runner) -> None:
        """Let all processes find what each has computed."""
        if self.cache is not None:
            self.cache.store.share()

    def after_train(self, runner: Runner) -> None:
        """Let go."""
        self._leave(runner)

    def _look_again(self, runner: Runner) -> None:
        if self.cache is not None and ema_hooks(runner):  # which exchanges weights behind torch's back
            self.cache.look_again()

    def _enter(self, runner: Runner) -> None:
        """Begin with the current stage, if it is another one than before."""
        run, caching = _run_of(runner), self.caching
        if run.progress.stage == self._stage:
            return
        self._leave(runner)
        self._stage = run.progress.stage
        if self._reasons[self._stage]:
            runner.logger.info(f'trunk cache: off, {self._reasons[self._stage]}', extra=SAID)
            return
        model: Any = unwrap(runner.model)
        frozen = frozen_of(run.stage, model)
        last = trunk_of(model, frozen)
        store = ArrayStore(Path(runner.work_dir) if caching.where == 'file' else None,
                           caching.most_bytes / get_world_size())
        self.cache, self._said = TrunkCache(model, last, frozen, store, caching.dtype), False
        if not is_steady(model, self.cache, frozen):
            raise UserError('trunk_cache needs a frozen part that gives the same for the same image, and this one does '
                            'not, as where there is dropout; take trunk_cache out')
        model.trunk = self.cache

    def _leave(self, runner: Runner) -> None:
        """End what the current stage kept."""
        if self.cache is not None:
            model: Any = unwrap(runner.model)
            model.trunk = None
            self.cache.store.close()
            runner.logger.info(f'trunk cache: {self.cache.computed:,} images computed, {self.cache.found:,} found')
            self.cache = None


def _run_of(runner: Runner) -> StagedRun:
    run = staged_run(runner)
    if run is None:
        raise UserError('trunk_cache needs a plan: set stages, as the configs mgdet_*_stage1.py do')
    return run


def _reason(runner: Runner, run: StagedRun, index: int) -> str:
    """Why a stage cannot use it, '' where it can."""
    stage, model = run.plan.stages[index], unwrap(runner.model)
    where, keep = f"stage '{stage.name}'", run.plan.keep
    if not trunk_of(model, frozen_of(stage, model)):
        return f'{where} trains the backbone'
    if keep is not None and form_of(model, run.plan.start, keep.form) == 'features':
        return f"{where} is held by the backbone's features (keep.form)"
    if getattr(model.data_preprocessor, 'batch_augments', None):
        return f'{where} has model.data_preprocessor.batch_augments, which change images at random'
    dataset = runner.train_dataloader.dataset
    if not isinstance(dataset, StagedDataset):
        return f'{where} has a dataloader that is built already'
    step = dataset.random_step(index)
    return f'{where} has the random step {step} in its pipeline (clean=True, or probs=dict({step}=0.0))' if step else ''


def _images(runner: Runner) -> int:
    """How many images a stage sees, of all sets it trains and measures on."""
    loop: Any = runner.val_loop
    train: Any = runner.train_dataloader.dataset
    loops = [loop, *getattr(loop, 'others', {}).values()] if loop is not None else []
    return len(train) + len(train.old or ()) + sum(len(each.dataloader.dataset) for each in loops)
