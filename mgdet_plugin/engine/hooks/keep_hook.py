"""Holds a run's model to what the weights it starts from think of old images, as the config's ``keep`` says."""
from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.dataset import ConcatDataset
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, ValLoop
from torch import Tensor

from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.guard_record import AGREEMENT, LABELS
from mgdet_plugin.common.processes import on_first_rank
from mgdet_plugin.datasets.old_images import OldImages, image_paths, pipeline_of
from mgdet_plugin.datasets.staged.sample_index import kept_randomness
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.staged_run import StagedRun, staged_run
from mgdet_plugin.keep.agreement import coco_of
from mgdet_plugin.keep.holder import Holder
from mgdet_plugin.keep.memory import describe, split_held_out, spread
from mgdet_plugin.keep.start_weights import save_start, start_state
from mgdet_plugin.keep.teacher import Teacher, class_indices
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.plan.freezing import unwrap
from mgdet_plugin.plan.keeping import OLD_SET, Keeping, form_of

KEY = 'keep'  # in a checkpoint: the classes its run's start weights did not know
FOLDER = 'keep'  # in a run's folder
HELD_OUT = f'{FOLDER}/held_out.json'  # what the start weights see in the old pictures that are held out
_LOOK = 50  # pictures looked at before the teacher is said to see nothing


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
        with kept_randomness():
            self._look(runner, run, OldPictures(runner, teacher, form))
        run.loop.step_guard.around = self._holder.held
        runner.logger.info(f'keep: {_in_words(self.summary)}')

    def before_train_epoch(self, runner: Runner) -> None:
        """Take the stage's weight."""
        run = staged_run(runner)
        assert run is not None and self._holder is not None
        self._holder.weight = run.plan.keep_weight(run.progress.stage)

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
        old = getattr(runner.train_dataloader.dataset, 'old', None)
        parts = old.datasets if isinstance(old, ConcatDataset) else [] if old is None else [old]
        own = parts[0].seen_by(pictures.pipeline) if keeping.images is not None else None
        held_out, memory = None, list(range(len(own) if own else 0))
        copies = range(len(memory), sum(map(len, parts))) if keeping.holds_copies else range(0)
        if not followed and holder.form != 'features':
            held_out, memory = self._held_out(pictures, own, memory)
        if own is not None and keeping.images_used is not None and keeping.images_used < len(memory):
            memory = pictures.spread(own, memory, keeping.images_used)
        if held_out is not None:
            pictures.follow(held_out, keeping)
        if old is not None:
            offset = len(runner.train_dataloader.dataset)
            assert run.loop.batch_sampler is not None  # a built dataloader was refused
            run.loop.batch_sampler.set_memory(
                *([offset + index for index in each] for each in (memory, copies) if each))
        if own is not None:
            if holder.form != 'features':
                pictures.refuse_blind(own, memory, keeping)
            if keeping.cache:
                holder.remember(pictures.remembered(own, memory, keeping.cache))
        self.summary = dict(
            images=len(memory), copies=len(copies), held_out=len(held_out or ()), at_least=keeping.at_least,
            share=keeping.share, by=LABELS if followed else AGREEMENT if held_out else '', weight=keeping.weight,
            form=holder.form, source=keeping.images if isinstance(keeping.images, str) else '')

    def _held_out(self, pictures: OldPictures, own: Any, memory: list[int]) -> tuple[Any, list[int]]:
        """What is never trained on, and what is left to train on."""
        given = self.keeping.others(followed=False)
        if isinstance(given, (str, Mapping)):
            return pictures.others(given), memory
        if own is None or not given:
            return None, memory
        kept, held = split_held_out(own.names, given)
        return own.get_subset(held), kept


class OldPictures:
    """Old pictures as the teacher sees them, not augmented.

    Args:
        runner: The runner, whose validation pipeline prepares them.
        teacher: Who looks.
        form: How the model is held.
    """

    def __init__(self, runner: Runner, teacher: Teacher, form: str) -> None:
        self.runner, self.teacher, self.form = runner, teacher, form
        loader = runner.cfg.get('val_dataloader') or runner.cfg.train_dataloader
        self.pipeline = pipeline_of(loader['dataset'])

    def others(self, images: str | Mapping[str, Any]) -> OldImages:
        """The pictures of another folder or dataset."""
        found = OldImages(images, serialize_data=False).seen_by(self.pipeline)
        found.leave_out(image_paths(self.runner.cfg.train_dataloader['dataset']))
        return found

    def batches(self, dataset: OldImages, indices: Sequence[int]) -> Iterator[tuple[int, Tensor, list[Any]]]:
        """Index, normalised image (1, 3, H, W) and data sample of each picture.

        One at a time: in a batch with others the last bits would be others, and a resumed run is to be the same run.
        """
        preprocessor: Any = self.teacher.model.data_preprocessor
        for index in indices:
            item = dataset[index]
            data = preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]), False)
            yield index, data['inputs'], data['data_samples']

    def spread(self, dataset: OldImages, indices: Sequence[int], count: int) -> list[int]:
        """So many of the pictures, as different as they can be in what the teacher sees."""
        def choose() -> list[int]:
            self.runner.logger.info(f'keep: the start weights look at {len(indices):,} old images to choose {count:,}')
            seen = torch.stack([self._described(inputs, samples)
                                for _, inputs, samples in self.batches(dataset, indices)])
            return [indices[place] for place in spread(seen, count)]

        return list(on_first_rank(choose))

    def _described(self, inputs: Tensor, samples: list[Any]) -> Tensor:
        """What the teacher sees in a picture, as a vector: how much of each class."""
        if self.form == 'features':
            return torch.cat([level.mean((0, 2, 3)) for level in self.teacher.features(inputs)]).cpu()
        classes = len(self.runner.train_dataloader.dataset.metainfo['classes'])
        return describe(self.teacher.detect(inputs, samples)[0], classes)

    def refuse_blind(self, dataset: OldImages, indices: Sequence[int], keeping: Keeping) -> None:
        """Refuse pictures in which the teacher sees nothing: they hold the model to nothing."""
        if not any(len(self.teacher.detect(inputs, samples)[0]) for _, inputs, samples
                   in self.batches(dataset, indices[:_LOOK])):
            raise UserError(f'the weights see nothing in the {min(len(indices), _LOOK)} old images looked at '
                            f'({keeping.images}): give pictures like those they were trained on')

    def remembered(self, dataset: OldImages, indices: Sequence[int], where: str) -> Mapping[int, Any]:
        """Index of a picture -> what the teacher thinks of it: cells (N, D), or detections in input pixels."""
        if self.form == 'boxes':
            return {index: self.teacher.detect(inputs, samples)[0]
                    for index, inputs, samples in self.batches(dataset, indices)}
        cells = {}
        path = Path(self.runner.work_dir, FOLDER, f'cells_{get_rank()}.npy')
        held: Any = None
        for place, (index, inputs, _) in enumerate(self.batches(dataset, indices)):
            seen = flatten_maps(self.teacher.maps(inputs))[0].cpu().numpy()
            if held is None:
                shape = (len(indices), *seen.shape)
                path.parent.mkdir(parents=True, exist_ok=True)
                held = np.lib.format.open_memmap(path, 'w+', np.float32, shape) if where == 'file' else np.empty(
                    shape, np.float32)
            held[place] = seen
            cells[index] = held[place]
        return cells

    def follow(self, dataset: OldImages, keeping: Keeping) -> None:
        """Let every validation measure the held-out pictures by what the teacher sees in them."""
        loop, folder = self.runner.val_loop, Path(self.runner.work_dir, FOLDER)
        if not isinstance(loop, LossValLoop):
            return
        names = list(self.runner.train_dataloader.dataset.metainfo['classes'])
        path = Path(self.runner.work_dir, HELD_OUT)

        def write() -> None:
            pictures, found = [], []
            for index, inputs, samples in self.batches(dataset, range(len(dataset))):
                picture = dataset.get_data_info(index)
                pictures.append(dict(picture, img_path=os.path.abspath(picture['img_path'])))
                found.append(self.teacher.detect(inputs, samples, rescale=True)[0])
            content = coco_of(pictures, found, names, keeping.sure, keeping.unsure)
            if all(each['iscrowd'] for each in content['annotations']):
                raise UserError(f'the weights see nothing in the {len(pictures)} old images held out: give pictures '
                                'like those they were trained on')
            folder.mkdir(parents=True, exist_ok=True)
            write_together({path: lambda stream: stream.write(json.dumps(content).encode())})

        on_first_rank(write)
        own = self.runner.visualizer.dataset_meta
        loader, evaluator = held_out_set(self.runner.cfg.val_dataloader, path, names)
        loop.others[OLD_SET] = ValLoop(self.runner, loader, evaluator, loop.fp16)
        self.runner.visualizer.dataset_meta = own


def held_out_set(loader: Mapping[str, Any], path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of dataloader and evaluator of old pictures held out, prepared as the validation set of a loader."""
    leaf = dict(type='CocoDataset', ann_file=str(path), data_prefix=dict(img=''), test_mode=True,
                metainfo=dict(classes=list(names)), pipeline=pipeline_of(loader['dataset']))
    return {**copy.deepcopy(loader), 'dataset': leaf}, dict(type='FasterCocoMetric', ann_file=str(path), metric='bbox')


def _in_words(summary: Mapping[str, Any]) -> str:
    """What is held, in words."""
    by = {LABELS: 'a labelled set of the old domain', AGREEMENT: f'{summary["held_out"]} held-out old images, by '
          'agreement with the start weights'}.get(summary['by'], 'nothing: what is kept is not measured')
    on = ' and '.join([*([f'{summary["images"]} old images'] if summary['images'] else []),
                       *([f'{summary["copies"]} new ones in other colours'] if summary['copies'] else [])])
    return (f'{summary["form"]} held on {on or "the new images"}, {summary["share"]:.0%} of each batch, weight '
            f'{summary["weight"]:g}; measured by {by}')
