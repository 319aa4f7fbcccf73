"""Old pictures as a run's start weights see them: which are trained on, which measure, what is remembered of them."""
from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dataset import ConcatDataset
from mmengine.runner import Runner, ValLoop
from torch import Tensor

from mgdet_plugin.common.array_store import ArrayStore
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.processes import on_first_rank
from mgdet_plugin.datasets.old_images import OldImages, image_paths, pipeline_of
from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.keep.agreement import coco_of
from mgdet_plugin.keep.memory import describe, split_held_out, spread
from mgdet_plugin.keep.teacher import Teacher
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.plan.keeping import OLD_SET, Keeping

FOLDER = 'keep'  # in a run's folder
HELD_OUT_RECORD = f'{FOLDER}/held_out.json'  # what the start weights see in the old pictures that are held out
_LOOK = 50  # pictures looked at before the teacher is said to see nothing


class Memory(NamedTuple):
    """Which old images a run trains on, and which it does not.

    Attributes:
        own: Those of ``keep.images``, not augmented; None where there are none.
        indices: Which of them are trained on.
        copies: Indices of copies of new images, behind all of ``own``.
        held_out: What is never trained on; None where nothing is held out.
    """
    own: OldImages | None
    indices: list[int]
    copies: range
    held_out: OldImages | None

    def groups(self, offset: int = 0) -> list[list[int]]:
        """What a batch draws from in turn, as a dataset counts it that has ``offset`` new images before them."""
        return [[offset + index for index in each] for each in (self.indices, self.copies) if each]


class OldPictures:
    """Old pictures as the teacher sees them, not augmented.

    Args:
        cfg: The run's config, whose validation pipeline prepares them.
        teacher: Who looks; None where nobody has to.
        form: How the model is held.
        names: The run's classes.
        say: Takes a line on the progress.
    """

    def __init__(self, cfg: Mapping[str, Any], teacher: Teacher | None, form: str, names: Sequence[str],
                 say: Callable[[str], object] = str) -> None:
        self.cfg, self.form, self.names, self.say = cfg, form, list(names), say
        self._teacher = teacher
        self.pipeline = pipeline_of((cfg.get('val_dataloader') or cfg['train_dataloader'])['dataset'])

    @property
    def teacher(self) -> Teacher:
        """Who looks.

        Raises:
            UserError: Nobody is there.
        """
        if self._teacher is None:
            raise UserError('which of the old images are trained on (keep.images_used) is chosen by the weights the '
                            f'run starts from, and load_from ({self.cfg.get("load_from")}) is not there; import them, '
                            'or set keep.images_used=None')
        return self._teacher

    def choose(self, keeping: Keeping, old: OldImages | ConcatDataset | None, followed: bool) -> Memory:
        """Which old images are trained on, by the options alone and, with ``images_used``, by what the teacher sees.

        Args:
            keeping: The options.
            old: The old images of the training set.
            followed: Whether a labelled set of the old domain is measured on.

        Raises:
            UserError: There are too few of them.
        """
        parts = old.datasets if isinstance(old, ConcatDataset) else [] if old is None else [old]
        own = parts[0].seen_by(self.pipeline) if keeping.images is not None else None
        held_out, indices = None, list(range(len(own) if own else 0))
        copies = range(len(indices), sum(map(len, parts))) if keeping.holds_copies else range(0)
        if not followed and self.form != 'features':
            held_out, indices = self._held_out(keeping, own, indices)
        if own is not None and keeping.images_used is not None and keeping.images_used < len(indices):
            indices = self.spread(own, indices, keeping.images_used)
        return Memory(own, indices, copies, held_out)

    def _held_out(self, keeping: Keeping, own: OldImages | None, indices: list[int]) -> tuple[Any, list[int]]:
        """What is never trained on, and what is left to train on."""
        given = keeping.others(followed=False)
        if isinstance(given, (str, Mapping)):
            return self.others(given), indices
        if own is None or not given:
            return None, indices
        kept, held = split_held_out(own.names, given)
        return own.get_subset(held), kept

    def others(self, images: str | Mapping[str, Any]) -> OldImages:
        """The pictures of another folder or dataset."""
        found = OldImages(images, serialize_data=False).seen_by(self.pipeline)
        found.leave_out(image_paths(self.cfg['train_dataloader']['dataset']))
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
        teacher = self.teacher

        def choose() -> list[int]:
            self.say(f'keep: the start weights look at {len(indices):,} old images to choose {count:,}')
            seen = torch.stack([self._described(teacher, inputs, samples)
                                for _, inputs, samples in self.batches(dataset, indices)])
            return [indices[place] for place in spread(seen, count)]

        return list(on_first_rank(choose))

    def _described(self, teacher: Teacher, inputs: Tensor, samples: list[Any]) -> Tensor:
        """What the teacher sees in a picture, as a vector: how much of each class."""
        if self.form == 'features':
            return torch.cat([level.mean((0, 2, 3)) for level in teacher.features(inputs)]).cpu()
        return describe(teacher.detect(inputs, samples)[0], len(self.names))

    def refuse_blind(self, dataset: OldImages, indices: Sequence[int], keeping: Keeping) -> None:
        """Refuse pictures in which the teacher sees nothing: they hold the model to nothing."""
        if not any(len(self.teacher.detect(inputs, samples)[0]) for _, inputs, samples
                   in self.batches(dataset, indices[:_LOOK])):
            raise UserError(f'the weights see nothing in the {min(len(indices), _LOOK)} old images looked at '
                            f'({keeping.images}): give pictures like those they were trained on')

    def remembered(self, dataset: OldImages, indices: Sequence[int], where: str, work_dir: str) -> Mapping[int, Any]:
        """Index of a picture -> what the teacher thinks of it: cells (N, D), or detections in input pixels."""
        if self.form == 'boxes':
            return {index: self.teacher.detect(inputs, samples)[0]
                    for index, inputs, samples in self.batches(dataset, indices)}
        cells = ArrayStore(Path(work_dir) if where == 'file' else None)
        for index, inputs, _ in self.batches(dataset, indices):
            if not cells.put(index, flatten_maps(self.teacher.maps(inputs))[0].cpu().numpy()):
                raise UserError(f"keep.cache='file': {len(cells):,} of {len(indices):,} old images fill half of what "
                                f'is free on the disk of {work_dir}; give another --work-dir or keep.images_used, or '
                                'leave the cache out')
        return cells

    def follow(self, runner: Runner, dataset: OldImages, keeping: Keeping) -> None:
        """Let every validation of a run measure the held-out pictures by what the teacher sees in them."""
        loop, path = runner.val_loop, Path(runner.work_dir, HELD_OUT_RECORD)
        if not isinstance(loop, LossValLoop):
            return

        def write() -> None:
            pictures, found = [], []
            for index, inputs, samples in self.batches(dataset, range(len(dataset))):
                picture = dataset.get_data_info(index)
                pictures.append(dict(picture, img_path=os.path.abspath(picture['img_path'])))
                found.append(self.teacher.detect(inputs, samples, rescale=True)[0])
            content = coco_of(pictures, found, self.names, keeping.sure, keeping.unsure)
            if all(each['iscrowd'] for each in content['annotations']):
                raise UserError(f'the weights see nothing in the {len(pictures)} old images held out: give pictures '
                                'like those they were trained on')
            path.parent.mkdir(parents=True, exist_ok=True)
            write_together({path: lambda stream: stream.write(json.dumps(content).encode())})

        on_first_rank(write)
        loader, evaluator = held_out_set(runner.cfg.val_dataloader, path, self.names)
        own = runner.visualizer.dataset_meta
        loop.others[OLD_SET] = ValLoop(runner, loader, evaluator, loop.fp16)
        runner.visualizer.dataset_meta = own


def held_out_set(loader: Mapping[str, Any], path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configs of dataloader and evaluator of old pictures held out, prepared as the validation set of a loader."""
    leaf = dict(type='CocoDataset', ann_file=str(path), data_prefix=dict(img=''), test_mode=True,
                metainfo=dict(classes=list(names)), pipeline=pipeline_of(loader['dataset']))
    return {**copy.deepcopy(loader), 'dataset': leaf}, dict(type='FasterCocoMetric', ann_file=str(path), metric='bbox')
