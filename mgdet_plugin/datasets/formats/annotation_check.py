"""Preflight of a config's datasets, before anything is built: what is missing, malformed or left out, in one line.

``check_datasets(cfg)`` raises :class:`UserError` for what cannot be trained on and returns what a log should say about
the rest: degenerate boxes are skipped, and counted here.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names, class_metainfo, registered_names, text_names
from mgdet_plugin.common.resources import command, shown_config
from mgdet_plugin.datasets.formats.annotation_files import (
    DatasetReport,
    load_coco,
    some,
    summarize_coco,
    summarize_voc,
)

SPLITS = ('train', 'val', 'test')


def iter_dataset_cfgs(dataset: Any) -> Iterator[dict[str, Any]]:
    """The datasets inside wrappers (RepeatDataset, ConcatDataset, ClassBalancedDataset, MultiImageMixDataset, ...).

    Args:
        dataset: a dataset config, or None.
    """
    return (each for each in _with_wrappers(dataset) if 'dataset' not in each and each.get('datasets') is None)


def _with_wrappers(dataset: Any) -> Iterator[dict[str, Any]]:
    """A dataset config and all those inside it."""
    if isinstance(dataset, Mapping):
        yield dataset  # type: ignore[misc]
        for each in [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets') or []:
            yield from _with_wrappers(each)


def check_datasets(cfg: Config, splits: Sequence[str] = SPLITS) -> list[DatasetReport]:
    """Check the datasets and the evaluation files of the splits of a config that will be used.

    CocoDataset and XMLDataset and subclasses that read the same files are read through, others only looked up.

    Returns:
        One report a dataset, in order; log their ``lines()``.

    Raises:
        UserError: what is missing or wrong, the path or value seen, what to do.
    """
    checker = _Checker(cfg)
    return [report for split in splits for report in checker.check_split(split)]


def config_name(cfg: Config) -> str:
    """A config's path as a command line would name it: relative where that is shorter."""
    return shown_config(cfg.filename) if cfg.filename else 'CONFIG'


def dataset_names(dataset: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    """Classes of a dataset config: of its ``metainfo`` or else of its class, as mmengine's datasets do."""
    names = metainfo_names(dataset.get('metainfo'), origin)
    if names is not None:
        return names
    kind = dataset.get('type')
    return registered_names(kind, origin) if isinstance(kind, str) else class_metainfo(kind, str(kind), origin)


def metainfo_names(metainfo: Any, origin: str) -> tuple[str, ...] | None:
    """Classes of a ``metainfo``, None where it has none; a text is the path of a file of names, as for mmengine."""
    classes = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if classes is None:
        return None
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise UserError(f'{origin}: metainfo.classes is the text {classes!r}, neither a file nor a tuple of names; '
                            f'write ({classes!r},) for one class')
        return text_names(Path(classes), origin)
    return checked_names(classes, origin)


class _Checker:
    """One run of the preflight; remembers the last annotation file, which val and test usually share."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.last: tuple[tuple[Path, tuple[str, ...], bool], DatasetReport] | None = None

    def check_split(self, split: str) -> list[DatasetReport]:
        """Check one dataloader's datasets and, for val and test, the evaluator's file."""
        dataset = (self.cfg.get(f'{split}_dataloader') or {}).get('dataset')
        leaves = list(iter_dataset_cfgs(dataset))
        drops = any(str(step.get('type')).endswith('DropDegenerateBoxes')
                    for each in _with_wrappers(dataset) for step in each.get('pipeline') or [])
        reports = [self.check_dataset(split if len(leaves) == 1 else f'{split}[{index}]', leaf, drops)
                   for index, leaf in enumerate(leaves)]
        if split == 'train' and reports and all(not r.note and r.boxes == r.skipped.total() for r in reports):
            raise UserError(f'train: the datasets hold no usable box of their classes; see {leaves[0].get("ann_file")}')
        if split != 'train':
            self.check_evaluator(split, leaves)
        return reports

    def check_dataset(self, name: str, leaf: Mapping[str, Any], drops: bool) -> DatasetReport:
        """Check one dataset config."""
        kind = leaf.get('type')
        cls = DATASETS.get(kind) if isinstance(kind, str) else kind
        if not isinstance(cls, type) or not issubclass(cls, (CocoDataset, XMLDataset)):
            return DatasetReport(name, note=f'annotations not checked (type {kind})')
        if _is_remote(leaf):
            return DatasetReport(name, note='annotations not checked (not on the local disk)')
        self.require(name, 'ann_file', _joined(leaf, leaf.get('ann_file', '')), is_file=True)
        classes = _classes(name, cls, leaf)
        self.check_class_count(name, classes)
        is_coco = issubclass(cls, CocoDataset)
        base = CocoDataset if is_coco else XMLDataset
        if any(getattr(cls, each) is not getattr(base, each) for each in ('load_data_list', 'parse_data_info')):
            return DatasetReport(name, note=f'annotations not checked ({kind} reads its files in its own way)')
        report = self.coco(name, leaf, classes) if is_coco else self.voc(name, leaf, classes)
        if report.left_to_transform and not drops:
            raise UserError(f'{name}: {kind} keeps {report.left_to_transform} degenerate boxes (first: '
                            f"{report.first_skipped}); put dict(type='DropDegenerateBoxes') after LoadAnnotations in "
                            'the pipeline')
        return replace(report, name=name)

    def coco(self, name: str, leaf: Mapping[str, Any], classes: tuple[str, ...]) -> DatasetReport:
        """Read a COCO file and look for its images."""
        path = _joined(leaf, leaf['ann_file'])
        prefix = leaf.get('data_prefix') or {}
        if 'img' not in prefix:
            raise UserError(f'{name}: data_prefix is {dict(prefix)}; CocoDataset needs data_prefix=dict(img=FOLDER)')
        folder = _joined(leaf, prefix['img'])
        self.require(name, 'data_prefix', folder)
        test_mode = bool(leaf.get('test_mode', False))
        key = (path.resolve(), classes, test_mode)
        if self.last is None or self.last[0] != key:
            self.last = key, summarize_coco(path, classes, load_coco(path, test_mode))
        _require_images(path, folder, self.last[1].file_names)
        return self.last[1]

    def voc(self, name: str, leaf: Mapping[str, Any], classes: tuple[str, ...]) -> DatasetReport:
        """Read the VOC files of a list of images and look for these images."""
        path = _joined(leaf, leaf['ann_file'])
        root = _joined(leaf, (leaf.get('data_prefix') or {}).get('sub_data_root', ''))
        folders = {key: root / leaf.get(key, default)
                   for key, default in (('ann_subdir', 'Annotations'), ('img_subdir', 'JPEGImages'))}
        for key, folder in folders.items():
            self.require(name, key, folder)
        report = summarize_voc(path.read_text().splitlines(), folders['ann_subdir'], classes)
        _require_images(path, folders['img_subdir'], report.file_names)
        return report

    def check_class_count(self, name: str, classes: Sequence[str]) -> None:
        """The head must have as many classes as the dataset."""
        head = (self.cfg.get('model') or {}).get('bbox_head')
        count = head.get('num_classes') if isinstance(head, Mapping) else None
        if count is not None and count != len(classes):
            raise UserError(f'{name}: the dataset has {len(classes)} classes ({some(classes)}), '
                            f'model.bbox_head.num_classes is {count}; make them equal')

    def check_evaluator(self, split: str, leaves: Sequence[Mapping[str, Any]]) -> None:
        """CocoMetric must read the file that the dataset shows."""
        evaluators = self.cfg.get(f'{split}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
            ann_file = evaluator.get('ann_file')
            if not leaves or not ann_file or _is_remote(evaluator):
                continue
            self.require(f'{split}_evaluator', 'ann_file', Path(ann_file), is_file=True)
            shown = _joined(leaves[0], leaves[0].get('ann_file', ''))
            if len(leaves) == 1 and shown.resolve() != Path(ann_file).resolve():
                raise UserError(f'{split}_evaluator.ann_file is {ann_file}, the {split} dataset shows {shown}; '
                                'set both to the same file')

    def require(self, name: str, key: str, path: Path, is_file: bool = False) -> None:
        """Raise unless a file or folder is there, saying how to get on without it."""
        if path.is_file() if is_file else path.is_dir():
            return
        what = 'file' if is_file else 'folder'
        if path.parts[:2] == ('data', 'coco'):
            hint = 'lay COCO out as data/coco/{annotations,train2017,val2017} or set the dataset to your own'
        else:
            hint = 'correct data_root, ann_file and data_prefix of the dataset'
        config = config_name(self.cfg)
        if not Path(config).name.startswith('mgdet_'):  # only those have a small model beside them
            config = 'configs/mgdet_model5_stage1.py'
        raise UserError(f'{name}: {key} {path} is not there (a {what} is needed, seen from {os.getcwd()}); '
                        f'{hint}. To try it on embedded data: {command("train", config, "--demo")}')


def _joined(leaf: Mapping[str, Any], path: str) -> Path:
    """A path of a dataset config, under its ``data_root`` unless absolute, as mmengine joins them."""
    return Path(leaf.get('data_root') or '') / path


def _is_remote(leaf: Mapping[str, Any]) -> bool:
    """Whether the files lie behind a storage backend other than the local disk."""
    backend = (leaf.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or '://' in f'{leaf.get("data_root") or ""} {leaf.get("ann_file") or ""}'


def _classes(name: str, cls: type, leaf: Mapping[str, Any]) -> tuple[str, ...]:
    """The dataset's classes: metainfo before the class's METAINFO, a text being the path of a file of names."""
    classes = (leaf.get('metainfo') or {}).get('classes', getattr(cls, 'METAINFO', {}).get('classes'))
    if isinstance(classes, str):
        if not Path(classes).is_file():
            raise UserError(f'{name}: metainfo classes is the text {classes!r} and no such file exists; a tuple is '
                            f'needed, for one class with a comma: ({classes!r},)')
        classes = Path(classes).read_text().splitlines()
    if not classes:
        raise UserError(f'{name}: no classes; set metainfo=dict(classes=(...)) of the dataset')
    return tuple(classes)


def _require_images(ann_file: Path, folder: Path, file_names: Sequence[str]) -> None:
    """Raise if images that the annotations name are not in their folder; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    missing = []
    for file_name in file_names:
        head, tail = os.path.split(os.path.join(folder, file_name))
        if head not in listed:
            listed[head] = set(os.listdir(head)) if os.path.isdir(head) else set()
        if tail not in listed[head]:
            missing.append(file_name)
    if missing:
        raise UserError(f'{len(missing):,} of {len(file_names):,} images named in {ann_file} are not in {folder} '
                        f'(first: {missing[0]}); correct data_prefix or fetch them')
