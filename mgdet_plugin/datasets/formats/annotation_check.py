"""Preflight of a config's datasets, before a run is built: what is missing, malformed or left out, in one line.

``check_datasets(cfg)`` raises :class:`UserError` for what cannot be trained on and returns what a log should say about
the rest. Where files lie is asked of mmdet's own dataset, built without reading them.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.common.name_lists import checked_names, class_metainfo, registered_names, text_names
from mgdet_plugin.common.resources import shown_config
from mgdet_plugin.datasets.formats.coco_files import load_coco, summarize_coco
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, some
from mgdet_plugin.datasets.formats.evaluator_check import check_evaluators
from mgdet_plugin.datasets.formats.file_places import is_remote, require_images, require_path, require_voc_folder
from mgdet_plugin.datasets.formats.pictures import Inspector
from mgdet_plugin.datasets.formats.voc_files import summarize_voc
from mgdet_plugin.datasets.transforms.load_readable_image import LoadReadableImage

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


def check_datasets(cfg: Config, splits: Sequence[str] = SPLITS,
                   inspector: Inspector | None = None) -> list[DatasetReport]:
    """Check the datasets and the evaluation files of the splits of a config that will be used.

    CocoDataset and XMLDataset and subclasses that read the same files are read through, others only looked up.

    Args:
        cfg: the config.
        splits: names before ``_dataloader``.
        inspector: decodes the pictures; None leaves them alone, as all processes of a launch but one should.

    Returns:
        One report a dataset, in order; log their ``lines()``.

    Raises:
        UserError: what is missing or wrong, the path or value seen, what to do.
    """
    checker = _Checker(cfg, inspector)
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

    def __init__(self, cfg: Config, inspector: Inspector | None) -> None:
        self.cfg = cfg
        self.inspector = inspector
        self.last: tuple[tuple[Path, tuple[str, ...], bool], DatasetReport] | None = None

    def check_split(self, split: str) -> list[DatasetReport]:
        """Check one dataloader's datasets and, for all but train, the evaluator's files."""
        loader = self.cfg.get(f'{split}_dataloader') or {}
        dataset = loader.get('dataset')
        leaves = list(iter_dataset_cfgs(dataset))
        drops = any(str(step.get('type')).endswith('DropDegenerateBoxes')
                    for each in _with_wrappers(dataset) for step in each.get('pipeline') or [])
        reports = [self.check_dataset(split, split if len(leaves) == 1 else f'{split}[{index}]', leaf, drops)
                   for index, leaf in enumerate(leaves)]
        if split == 'train' and reports:
            if all(not each.note and each.boxes == each.skipped.total() for each in reports):
                raise UserError(f'train: the datasets hold no usable box of their classes; see {reports[0].source}')
            reports[0].more += _few_steps(loader, list(_repeated(dataset, iter(reports))))
        elif split != 'train':
            require(not loader.get('drop_last'), f'{split}_dataloader.drop_last leaves the images of the last batch '
                    'unmeasured; it must be False', loader.get('drop_last'))
            where = f'{split}_evaluator' if split in SPLITS else f"val_cfg.others['{split}'].evaluator"
            check_evaluators(where, self.cfg.get(f'{split}_evaluator'), leaves, reports)
        return reports

    def check_dataset(self, split: str, name: str, leaf: Mapping[str, Any], drops: bool) -> DatasetReport:
        """Check one dataset config."""
        kind = leaf.get('type')
        cls = DATASETS.get(kind) if isinstance(kind, str) else kind
        if not isinstance(cls, type) or not issubclass(cls, (CocoDataset, XMLDataset)):
            return DatasetReport(name, note=f'annotations not checked (type {kind})')
        if is_remote(leaf):
            return DatasetReport(name, note='annotations not checked (not on the local disk)')
        classes = dataset_names(leaf, name)
        self.check_class_count(split, name, classes)
        dataset = unread_dataset(name, leaf)
        require_path(name, 'ann_file', dataset.ann_file, is_file=True)
        is_coco = issubclass(cls, CocoDataset)
        base = CocoDataset if is_coco else XMLDataset
        if any(getattr(cls, each) is not getattr(base, each) for each in ('load_data_list', 'parse_data_info')):
            return DatasetReport(name, note=f'annotations not checked ({kind} reads its files in its own way)')
        report, folder = (self.coco if is_coco else self.voc)(name, dataset, classes)
        report = replace(report, name=name)
        report.refuse()
        if report.left_to_transform and not drops:
            raise UserError(f'{name}: {kind} keeps {report.left_to_transform} degenerate boxes (first: '
                            f"{report.first_skipped}); put dict(type='DropDegenerateBoxes') after LoadAnnotations in "
                            'the pipeline')
        require_images(report, folder, dataset)
        report.more = self.look_at(report, folder, leaf)
        return report

    def coco(self, name: str, dataset: Any, classes: tuple[str, ...]) -> tuple[DatasetReport, Path]:
        """Read a COCO file; the report and the folder of the images."""
        if 'img' not in dataset.data_prefix:
            raise UserError(f'{name}: data_prefix is {dict(dataset.data_prefix)}; CocoDataset needs '
                            'data_prefix=dict(img=FOLDER)')
        path = Path(dataset.ann_file)
        require_path(name, 'data_prefix', dataset.data_prefix['img'])
        key = (path.resolve(), classes, dataset.test_mode)
        if self.last is None or self.last[0] != key:
            self.last = key, summarize_coco(path, classes, load_coco(path, dataset.test_mode))
        return self.last[1], Path(dataset.data_prefix['img'])

    def voc(self, name: str, dataset: Any, classes: tuple[str, ...]) -> tuple[DatasetReport, Path]:
        """Read the VOC files of a list of images; the report and the folder of the images."""
        for key in ('ann_subdir', 'img_subdir'):
            require_voc_folder(name, key, dataset)
        root = Path(dataset.sub_data_root)
        return summarize_voc(Path(dataset.ann_file), root / dataset.ann_subdir, classes), root / dataset.img_subdir

    def look_at(self, report: DatasetReport, folder: Path, leaf: Mapping[str, Any]) -> list[str]:
        """Decode the pictures as the pipeline does; lines on what was found."""
        steps = (TRANSFORMS.build(dict(step)) for step in leaf.get('pipeline') or [])
        loader = next((step for step in steps if isinstance(step, LoadImageFromFile)), None)
        if self.inspector is None or loader is None:
            return [] if loader else ['pictures not looked at, no LoadImageFromFile in the pipeline']
        skip = loader.skip if isinstance(loader, LoadReadableImage) else 0.0
        if skip and leaf.get('test_mode'):
            raise UserError(f'{report.name}: LoadReadableImage leaves pictures out, and this set is measured on; load '
                            "them by dict(type='LoadImageFromFile')")
        return self.inspector.inspect(report.name, report.records, folder, loader, skip)

    def check_class_count(self, split: str, name: str, classes: Sequence[str]) -> None:
        """The head must have as many classes as the dataset."""
        head = (self.cfg.get('model') or {}).get('bbox_head')
        count = head.get('num_classes') if isinstance(head, Mapping) else None
        if count is None or count == len(classes):
            return
        seen = f'the dataset has {len(classes)} classes ({some(classes)}), model.bbox_head.num_classes is {count}'
        if split in SPLITS:
            raise UserError(f'{name}: {seen}; make them equal')
        raise UserError(f'val_cfg.others holds {name!r}, a further validation set of other classes: {seen}; set '
                        f"val_cfg=dict(others=None), or give {name!r} a set of the model's classes")


def unread_dataset(name: str, leaf: Mapping[str, Any]) -> Any:
    """mmdet's dataset without its annotations and its pipeline: what knows where its files lie.

    Raises:
        UserError: Its config is none that it takes.
    """
    for key, kinds in (('data_prefix', (Mapping, )), ('filter_cfg', (Mapping, type(None)))):
        if not isinstance(leaf.get(key, {}), kinds):
            raise UserError(f'{name}: {key} is {leaf[key]!r}; a dict is needed')
    try:
        return DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': True})
    except UserError as error:
        raise UserError(f'{name}: {error}') from error


def _repeated(dataset: Any, reports: Iterator[DatasetReport]) -> Iterator[int | None]:
    """Images that each leaf gives to an epoch, None where nobody knows."""
    if dataset.get('datasets') is not None:
        for each in dataset['datasets']:
            yield from _repeated(each, reports)
    elif 'dataset' in dataset:
        times = dataset.get('times', None if 'oversample_thr' in dataset else 1)
        for count in _repeated(dataset['dataset'], reports):
            yield times * count if isinstance(times, int) and count is not None else None
    else:
        report = next(reports)
        kept = len(report.with_objects) if (dataset.get('filter_cfg') or {}).get('filter_empty_gt') else report.images
        yield None if report.note else kept


def _few_steps(loader: Mapping[str, Any], images: Sequence[int | None]) -> list[str]:
    """A line where an epoch is a single step.

    Raises:
        UserError: It is none.
    """
    total, batch = sum(each or 0 for each in images), loader.get('batch_size')
    if None in images or not isinstance(batch, int) or total > batch:
        return []
    if loader.get('drop_last') and total < batch:
        raise UserError(f'{total} images make no step at batch {batch} with train_dataloader.drop_last=True; set '
                        'batch_size lower, or leave drop_last out')
    return [f'{total} images make 1 step an epoch at batch {batch}: a plan of few epochs is then as many steps; set '
            f'train_dataloader.batch_size to at most {max(1, total // 4)}']
