"""What is fuzzed: a checkpoint, a ``guard.json``, annotations. A case is a file, written and read as users read it."""
from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin import check_run
from mgdet_plugin.common.checkpoints import stored_config
from mgdet_plugin.datasets import check_datasets
from mgdet_plugin.datasets.sources.annotated import Box, Picture
from mgdet_plugin.datasets.sources.find import read_annotated
from mgdet_plugin.engine.checkpoint_check import check_weights
from mgdet_plugin.engine.hooks.whole_checkpoint_hook import WholeCheckpointHook
from mgdet_plugin.engine.resume_choice import Resumer
from mgdet_plugin.runs.run import read_run
from tests.support.annotated_sets import picture, write_coco, write_csv, write_lines, write_names, write_voc, write_yolo
from tests.support.fuzz.mutations import changed_bytes, mutated
from tests.support.run_folder import write_run
from tests.support.small_run import make_dataset
from tests.support.staged_run import HEAD, NECK, staged_config
from tests.support.staged_run import run as train

BYTES = .2  # share of cases that change bytes


class CheckpointKind:
    """A checkpoint of a run with stages, guard, results and random states, resumed from and started from.

    Args:
        folder: What is made for it.
        secret: What nothing may touch.
    """
    name = 'checkpoint'

    def __init__(self, folder: Path, secret: Path) -> None:
        self.folder, self.secret = folder, str(secret / 'a.png')
        self.cfg = staged_config(folder, make_dataset(folder / 'data'), [dict(HEAD, epochs=1), dict(NECK, epochs=1)],
                                 **{'model.neck.type': 'MultiGridNeck', 'model.backbone.type': 'ScaledDarknet'})
        self.config = folder / 'command.py'  # without what tests alone have registered
        command = copy.deepcopy(self.cfg)
        command.val_evaluator = Config.fromfile(self.cfg.filename).val_evaluator
        command.default_hooks.checkpoint.update(save_best='auto')
        command.dump(self.config)
        self.runner = train(self.cfg, folder / 'first')
        self.source = folder / 'first' / 'epoch_1.pth'
        self.content = torch.load(self.source, weights_only=True)
        self.content['meta'] |= dict(keras_import=dict(anchors=[[(10.0, 13.0)] * 3] * 3), new_classes=['blue'])
        hub = self.content['message_hub']
        hub['runtime_info'] |= dict(best_ckpt=str(folder / 'first' / 'best_x.pth'), best_score=.1, keep_ckpt_ids=[1])
        self.resumer = Resumer(self.cfg)
        self.count = 0
        self.state = {key: value.clone() for key, value in self.content['state_dict'].items()}

    def write(self, rng: Random, target: Path) -> Path:
        """A case."""
        path = target / 'epoch_1.pth'
        if rng.random() < BYTES:
            path.write_bytes(changed_bytes(rng, self.source.read_bytes(), self.secret))
            return path
        content = {key: value for key, value in self.content.items() if key != 'state_dict'}
        content = mutated(rng, content, self.secret, plain=False)
        if isinstance(content, dict):
            state = mutated(rng, dict(self.state), self.secret, plain=False) if rng.random() < .1 else self.state
            content.setdefault('state_dict', state)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20 * limit)  # to write what is deep, not to read it
        torch.save(content, path)
        sys.setrecursionlimit(limit)
        return path

    def use(self, path: Path) -> None:
        """Resume from it, or take it for weights to start from."""
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.resumer.check(path)
            runner = self.runner
            runner._resume, runner._load_from = True, str(path)
            runner.message_hub.runtime_info.clear()
            runner.resume(str(path))
            runner.call_hook('before_train')
            for hook in runner.hooks:
                if isinstance(hook, WholeCheckpointHook):
                    hook._save_checkpoint_with_step(runner, 2, dict(epoch=2, iter=4))
            self.count += 1
            if self.count % 5 == 0:  # which builds a model
                check_weights(Config(dict(self.cfg, load_from=str(path), resume=False)))
            stored_config(torch.load(path, weights_only=True))

    def command(self, path: Path, target: Path) -> list[str]:
        """A real command."""
        return ['train', str(self.config), '--work-dir', str(target / 'work'), '--resume', str(path)]


class GuardKind:
    """The ``guard.json`` of a run's folder, and now and then its table of results, judged."""
    name = 'guard.json'

    def __init__(self, folder: Path, secret: Path) -> None:
        self.secret = str(secret / 'a.png')
        self.source = write_run(folder / 'good', old=True)

    def write(self, rng: Random, target: Path) -> Path:
        """A case."""
        shutil.copytree(self.source, target, dirs_exist_ok=True)
        path = target / 'guard.json'
        text = path.read_bytes()
        if rng.random() < BYTES:
            path.write_bytes(changed_bytes(rng, text, self.secret))
        else:
            path.write_text(json.dumps(mutated(rng, json.loads(text), self.secret)), errors='surrogatepass')
        if rng.random() < .1:
            (target / 'last_checkpoint').write_bytes(changed_bytes(rng, b'epoch_1.pth', self.secret))
        return path

    def use(self, path: Path) -> None:
        """Judge it."""
        check_run(str(path.parent))
        read_run(path.parent)

    def command(self, path: Path, target: Path) -> list[str]:
        """A real command."""
        return ['check_run', str(path.parent)]


class AnnotationKind:
    """Annotations of every format: found, read, checked by the preflight and given by the dataset."""
    name = 'annotations'
    forms = ('coco', 'voc', 'yolo', 'yolo lists', 'data.yaml', 'lines', 'csv')

    def __init__(self, folder: Path, secret: Path) -> None:
        self.secret, self.folder = str(secret / 'a.png'), folder
        init_default_scope('mmdet')
        boxes = (Box('ant', (4, 6, 10, 12)), Box('bee', (20, 8, 30, 16)))
        for form in self.forms:
            root = folder / form
            pictures = [Picture(picture(root / 'images' / split / f'{index}.png', shade=20 + 9 * index), boxes)
                        for split in ('train', 'val') for index in (1, 2)]
            _WRITERS[form](root, pictures)

    def write(self, rng: Random, target: Path) -> Path:
        """A case."""
        form = rng.choice(self.forms)
        root = target / 'set'
        shutil.copytree(self.folder / form, root)
        texts = [path for path in sorted(root.rglob('*')) if path.suffix in ('.json', '.xml', '.txt', '.yaml', '.csv')]
        path = rng.choice(texts)
        content = path.read_bytes()
        if path.suffix == '.json' and rng.random() > BYTES:
            path.write_text(json.dumps(mutated(rng, json.loads(content), self.secret)), errors='surrogatepass')
        elif rng.random() < .5:
            path.write_bytes(_changed_words(rng, content, self.secret))
        else:
            path.write_bytes(changed_bytes(rng, content, self.secret))
        return root

    def use(self, path: Path) -> None:
        """Read it by ``mgdet init``'s reader, and a COCO file as a dataset of a config, too."""
        files = sorted(path.rglob('*.json'))
        if files:
            leaf = dict(type='CocoDataset', data_root=str(path), ann_file=files[0].name,
                        data_prefix=dict(img='images/train'), metainfo=dict(classes=('ant', 'bee', 'sea cow')),
                        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                                  dict(type='DropDegenerateBoxes')])
            check_datasets(Config(dict(train_dataloader=dict(dataset=leaf))), ['train'])
            dataset = DATASETS.build(leaf)
            for index in range(len(dataset)):
                dataset[index]
        read_annotated(path)

    def command(self, path: Path, target: Path) -> list[str]:
        """A real command."""
        return ['init', str(path), '--out', str(target / 'out')]


def _changed_words(rng: Random, content: bytes, secret: str) -> bytes:
    """A text with some of its words replaced."""
    text = content.decode('utf-8', 'replace')
    words = [each for each in text.replace('>', ' ').replace('<', ' ').replace(',', ' ').split() if each.strip('/')]
    for _ in range(rng.choice((1, 1, 2))):
        new = rng.choice((secret, '../../secret/a.png', '-1', 'nan', 'inf', '1e999', '9' * 400, '', '0', '1e30',
                          '&xxe;', '<a>' * 2000, '*a', '!!python/object/apply:os.system ["true"]', '\x00', '"',
                          '[' * 500))
        text = text.replace(rng.choice(words), new, 1) if words else text
    return text.encode('utf-8', 'replace')


def _coco(root: Path, pictures: Sequence[Picture]) -> None:
    write_coco(root, pictures[:2], 'train.json')


def _yolo_lists(root: Path, pictures: Sequence[Picture]) -> None:
    _yolo(root, pictures)
    for split in ('train', 'val'):
        (root / f'{split}.txt').write_text(''.join(f'images/{split}/{index}.png\n' for index in (1, 2)))


def _yolo(root: Path, pictures: Sequence[Picture]) -> None:
    for split, own in (('train', pictures[:2]), ('val', pictures[2:])):
        write_yolo(root / 'labels' / split, own)
    write_names(root / 'classes.txt')


def _data_yaml(root: Path, pictures: Sequence[Picture]) -> None:
    _yolo(root, pictures)
    (root / 'data.yaml').write_text('path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames:\n  0: ant\n  1: bee\n'
                                    '  2: sea cow\n')


def _lines(root: Path, pictures: Sequence[Picture]) -> None:
    write_names(root / 'classes.txt')
    for split, own in (('train', pictures[:2]), ('val', pictures[2:])):
        write_lines(root / f'{split}.txt', [Picture(each.path.relative_to(root), each.boxes) for each in own])


def _csv(root: Path, pictures: Sequence[Picture]) -> None:
    write_csv(root / 'train.csv', pictures[:2])


def _voc(root: Path, pictures: Sequence[Picture]) -> None:
    for split, own in (('train', pictures[:2]), ('val', pictures[2:])):
        write_voc(root / 'Annotations' / split, own)


_WRITERS: dict[str, Callable[[Path, Sequence[Picture]], None]] = {
    'coco': _coco, 'voc': _voc, 'yolo': _yolo, 'yolo lists': _yolo_lists, 'data.yaml': _data_yaml, 'lines': _lines,
    'csv': _csv}
KINDS: dict[str, Callable[[Path, Path], Any]] = {
    each.name: each for each in (CheckpointKind, GuardKind, AnnotationKind)}
