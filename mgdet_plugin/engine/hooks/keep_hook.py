"""Holds a run's model to what the weights it starts from think of old images, as the config's ``keep`` says."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mgdet_plugin.common.checkpoint_content import checked_new_classes, checks
from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import AGREEMENT, LABELS
from mgdet_plugin.common.records import need
from mgdet_plugin.compat.console import SAID
from mgdet_plugin.datasets.staged.sample_index import kept_randomness
from mgdet_plugin.engine.old_pictures import OldPictures
from mgdet_plugin.engine.staged_run import StagedRun, staged_run
from mgdet_plugin.engine.trunk_cache import share_trunk
from mgdet_plugin.keep.holder import Holder
from mgdet_plugin.keep.start_weights import save_start, start_state
from mgdet_plugin.keep.teacher import Teacher, class_indices
from mgdet_plugin.plan.freezing import unwrap
from mgdet_plugin.plan.keeping import OLD_SET, Keeping, form_of

KEY = 'keep'  # in a checkpoint: the classes its run's start weights did not know


@HOOKS.register_module()
class KeepHook(Hook):
    """Carry out the config's ``keep``; ``StagedTrainLoop`` registers it where there is one.

    Before the first step the start weights look at the old pictures: which of them are trained on, what they see in
    the ones held out (the truth a run is measured by where no labelled set is), and what they think of all of them
    where that is cached. In each step they take the place of the labels old images do not have.

    Args:
        keeping: What it is told.

    Attributes:
        summary: What is held and by what, for the guard's record.
    """
    priority = 76  # after StagedUnfreezeHook (LOW, 70), which knows the name of the run

    def __init__(self, keeping: Keeping) -> None:
        self.keeping = keeping
        self.summary: dict[str, Any] = {}
        self._new_classes: tuple[str | int, ...] = tuple(keeping.new_classes or ())
        self._holder: Holder | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take note of classes that the start weights do not know: of loaded weights, or as the resumed run did."""
        if self.keeping.new_classes is not None:
            return
        if runner._resume:
            self._new_classes = new_classes_of(dict(meta=checkpoint.get(KEY)))
        else:
            self._new_classes = new_classes_of(checkpoint)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the classes that the start weights do not know."""
        checkpoint[KEY] = dict(new_classes=list(self._new_classes))

    def before_train(self, runner: Runner) -> None:
        """Ask the start weights, and let them hold the model from the first step on.

        Raises:
            UserError: They see nothing in the old pictures, or the detector cannot be held as asked.
        """
        run, model = staged_run(runner), unwrap(runner.model)
        if run is None:
            raise UserError('keep needs a plan: set stages, as the configs mgdet_*_staged.py do')
        form = form_of(model, run.plan.start, self.keeping.form)
        save_start(runner)
        names = (runner.train_dataloader.dataset.metainfo or {}).get('classes', ())
        teacher = Teacher(model, start_state(runner), class_indices(self._new_classes, names))
        self._holder = Holder(model, teacher, self.keeping, form)
        share_trunk(model, teacher.model)
        with kept_randomness():
            say = partial(runner.logger.info, extra=SAID)
            self._look(runner, run, OldPictures(runner.cfg, teacher, form, names, say))
        run.loop.step_guard.around = self._holder.held
        runner.logger.info(f'keep: {_in_words(self.summary)}', extra=SAID)

    def before_train_epoch(self, runner: Runner) -> None:
        """Take the stage's weight, and its cache."""
        run = staged_run(runner)
        assert run is not None and self._holder is not None
        self._holder.weight = run.plan.keep_weight(run.progress.stage)
        share_trunk(unwrap(runner.model), self._holder.teacher.model)

    def after_train(self, runner: Runner) -> None:
        """Let go."""
        run = staged_run(runner)
        if run is not None:
            run.loop.step_guard.around = nullcontext

    def _look(self, runner: Runner, run: StagedRun, pictures: OldPictures) -> None:
        """Choose what is trained on and what is held out, and remember what the teacher thinks."""
        keeping, holder = self.keeping, self._holder
        assert holder is not None
        followed = OLD_SET in getattr(runner.val_loop, 'others', {})
        dataset = runner.train_dataloader.dataset
        memory = pictures.choose(keeping, getattr(dataset, 'old', None), followed)
        if memory.held_out is not None:
            pictures.follow(runner, memory.held_out, keeping)
        if memory.groups():
            assert run.loop.batch_sampler is not None  # a built dataloader was refused
            run.loop.batch_sampler.set_memory(*memory.groups(len(dataset)))
        if memory.own is not None:
            if holder.form != 'features':
                pictures.refuse_blind(memory.own, memory.indices, keeping)
            if keeping.cache:
                holder.remember(pictures.remembered(memory.own, memory.indices, keeping.cache, runner.work_dir))
        held_out = len(memory.held_out or ())
        self.summary = dict(
            images=len(memory.indices), copies=len(memory.copies), held_out=held_out, at_least=keeping.at_least,
            share=keeping.share, by=LABELS if followed else AGREEMENT if held_out else '', weight=keeping.weight,
            form=holder.form, source=keeping.images if isinstance(keeping.images, str) else '')


@checks(KEY)
def _check_keep(kept: Any, place: str) -> None:
    need(isinstance(kept, Mapping), place, kept, 'an object')
    checked_new_classes(kept.get('new_classes'), f'{place}.new_classes')


def _in_words(summary: Mapping[str, Any]) -> str:
    """What is held, in words."""
    by = {LABELS: 'a labelled set of the old domain', AGREEMENT: f'{summary["held_out"]} held-out old images, by '
          'agreement with the start weights'}.get(summary['by'], 'nothing: what is kept is not measured')
    on = ' and '.join([*([f'{summary["images"]} old images'] if summary['images'] else []),
                       *([f'{summary["copies"]} new ones in other colours'] if summary['copies'] else [])])
    return (f'{summary["form"]} held on {on or "the new images"}, {summary["share"]:.0%} of each batch, weight '
            f'{summary["weight"]:g}; measured by {by}')
