"""What is to be examined, as plain records: the datasets of a config, a COCO file, or a folder with one a split.

Data without a config stand in the place of another config's datasets, so all goes the way that training takes.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.annotation_check import SPLITS, dataset_names, unread_dataset
from mgdet_plugin.datasets.formats.box_sense import BoxSense
from mgdet_plugin.datasets.formats.coco_files import load_coco
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, some
from mgdet_plugin.prepare.picture_records import PictureBox, PictureRecord, PictureSet

LIKE = 'mgdet_model5_stage1'  # whose input size and anchors data without a config are held against
_SPLIT_NAMES = dict(valid='val', validation='val', eval='val')
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError)  # of mmdet's own readers
_LOADER = '_dataloader'
_PATTERNS = ('*.json', 'annotations/*.json', '*/*.json')  # of COCO files in a folder


def config_of(source: str | Path, like: str = LIKE, images: str | Path | None = None,
              options: Mapping[str, Any] | None = None) -> Config:
    """The config whose datasets are to be examined.

    Args:
        source: A config; or a COCO file, the training set; or a folder with one COCO file a split.
        like: For data without a config, the config whose model and input size they are held against.
        images: For data without a config, the folder of the pictures. Default: looked for beside the files.
        options: Dotted keys of the config to set.

    Raises:
        UserError: It is not there, or none of these.
    """
    path = Path(source)
    files = _coco_files(path)
    if not files and path.is_dir():
        raise UserError(f'{path} has no COCO file (*.json, annotations/*.json or */*.json with images, annotations and '
                        'categories); give a config, or write the boxes as COCO')
    cfg = Config.fromfile(config_path(like if files else source))
    cfg.merge_from_dict(dict(options or {}))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if files:
        _put_in(cfg, {split: _coco_dataset(file, images) for split, file in files.items()})
    return cfg


def gather(cfg: Config) -> PictureSet:
    """The pictures of a config's datasets: the one place where data come in.

    Val and test are one split where they are the same files.

    Raises:
        UserError: Annotations cannot be read at all.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ensure_embedded_data(cfg)
    records: list[PictureRecord] = []
    names: dict[str, None] = {}
    refused: dict[str, str] = {}
    said: list[str] = []
    for split, title in _splits(cfg).items():
        try:
            said += [line for report in check_datasets(cfg, [split]) for line in _beyond_boxes(report)]
        except UserError as error:
            refused[title] = str(error)
        try:
            for leaf in iter_dataset_cfgs(cfg[split + _LOADER].dataset):
                classes = dataset_names(leaf, split)
                if names and tuple(names) != classes:
                    refused.setdefault(title, f'{title}: its classes are ({some(classes)}), those of the splits before '
                                              f'({some(list(names))}); a label means a class by its place alone')
                names |= dict.fromkeys(classes)
                records += _records(title, leaf, classes, {name: place for place, name in enumerate(names)})
        except _UNREADABLE as error:
            raise UserError(refused.get(title) or f'{title}: its annotations cannot be read '
                            f'({type(error).__name__}: {error})') from error
    if not records:
        raise UserError(f'{cfg.filename}: its datasets name no picture; set train_dataloader.dataset to your data')
    return PictureSet(tuple(names), tuple(records), refused, tuple(said))


def _beyond_boxes(report: DatasetReport) -> list[str]:
    """What training would say of a dataset, without what is found here box by box."""
    return replace(report, note='', skipped=Counter(), sense=BoxSense(corners=False), classes=()).lines()


def loader_of(cfg: Config) -> LoadImageFromFile:
    """What loads the pictures of a config's first dataset that says it."""
    steps = (step for split in _splits(cfg) for leaf in iter_dataset_cfgs(cfg[split + _LOADER].dataset)
             for step in leaf.get('pipeline') or [])
    found = (TRANSFORMS.build(dict(step)) for step in steps if 'Load' in str(step.get('type')))
    return next((step for step in found if isinstance(step, LoadImageFromFile)), None) or LoadImageFromFile()


def outside_of(data: PictureSet, folder: Path) -> Path:
    """A folder to write to, having refused one where the data lie, or below.

    Raises:
        UserError: It holds pictures or folders of pictures, or lies below one.
    """
    pictures = {Path(each.path).resolve().parent for each in data.records}
    place = folder.resolve()
    if any(place == each or each in place.parents or place == each.parent for each in pictures):
        raise UserError(f'cannot write to {folder}: the data lie there, and they are left as they are; give another '
                        'folder with --out')
    return folder


def _splits(cfg: Config) -> dict[str, str]:
    """Split -> its title, in the order of training; a test set that is the validation set is named with it."""
    found = [key.removesuffix(_LOADER) for key in cfg if key.endswith(_LOADER) and cfg[key]]
    ordered = [*(each for each in SPLITS if each in found), *(each for each in found if each not in SPLITS)]
    titles: dict[str, str] = {}
    for split in ordered:
        same = next((each for each in titles if each != 'train' and split == 'test'
                     and _where(cfg, each) == _where(cfg, split)), None)
        if same:
            titles[same] = f'{same} and {split}'
        else:
            titles[split] = split
    return titles


def _where(cfg: Config, split: str) -> list[dict[str, Any]]:
    """What a split's datasets read, without what is done with it."""
    return [{key: value for key, value in leaf.items() if key not in ('pipeline', 'test_mode', 'filter_cfg')}
            for leaf in iter_dataset_cfgs(cfg[split + _LOADER].dataset)]


def _records(split: str, leaf: Mapping[str, Any], classes: tuple[str, ...],
             places: Mapping[str, int]) -> Iterator[PictureRecord]:
    """The pictures of one dataset; those of a COCO file with the boxes that mmdet drops."""
    dataset = unread_dataset(split, {**leaf, 'test_mode': True, 'filter_cfg': None})
    if isinstance(dataset, CocoDataset):
        yield from _coco_records(split, dataset, classes, places)
        return
    for info in dataset.load_data_list():
        boxes = (PictureBox((float(x1), float(y1), float(x2), float(y2)), places[classes[each['bbox_label']]],
                            bool(each.get('ignore_flag')))
                 for each in info.get('instances') or () for x1, y1, x2, y2 in [each['bbox']])
        size = (info['width'], info['height']) if info.get('width') and info.get('height') else None
        yield PictureRecord(info['img_path'], size, tuple(boxes), split)


def _coco_records(split: str, dataset: CocoDataset, classes: tuple[str, ...],
                  places: Mapping[str, int]) -> Iterator[PictureRecord]:
    content = load_coco(Path(dataset.ann_file))
    names = {each['id']: each['name'] for each in content['categories']}
    boxes: dict[Any, list[PictureBox]] = {each['id']: [] for each in content['images']}
    for each in content['annotations']:
        name = names[each['category_id']]
        if name in classes and not each.get('ignore'):
            x, y, w, h = map(float, each['bbox'])
            boxes[each['image_id']].append(PictureBox((x, y, x + w, y + h), places[name], bool(each.get('iscrowd'))))
    folder = Path(dataset.data_prefix['img'])
    for image in content['images']:
        yield PictureRecord(str(folder / image['file_name']), (image['width'], image['height']),
                            tuple(boxes[image['id']]), split)


def _coco_files(path: Path) -> dict[str, Path]:
    """Split -> COCO file: the file itself, or those of a folder."""
    if path.is_file():
        return {'train': path} if path.suffix == '.json' and _is_coco(path) else {}
    found: dict[str, Path] = {}
    for file in (each for pattern in _PATTERNS for each in sorted(path.glob(pattern))):
        name = file.stem if not file.stem.startswith('_') else file.parent.name  # annotation services name all alike
        name = next((split for split in (*SPLITS, *_SPLIT_NAMES) if split in name), name)
        if file not in found.values() and _is_coco(file):
            found.setdefault(_SPLIT_NAMES.get(name, name), file)
    return found if 'train' in found or len(found) != 1 else {'train': next(iter(found.values()))}


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(content, dict) and {'images', 'annotations', 'categories'} <= content.keys()


def _coco_dataset(file: Path, images: str | Path | None) -> dict[str, Any]:
    """A dataset's config of a COCO file, its pictures in the folder where the first of them is."""
    content = load_coco(file)
    first = content['images'][0]['file_name'] if content['images'] else ''
    around = [file.parent, file.parent.parent]
    folders = [Path(images)] if images else [
        *around, *(folder / name for folder in around for name in ('images', file.stem, f'images/{file.stem}'))]
    folder = next((each for each in folders if (each / first).is_file()), folders[0])
    return dict(type='CocoDataset', ann_file=str(file), data_prefix=dict(img=str(folder)),
                metainfo=dict(classes=tuple(dict.fromkeys(each['name'] for each in content['categories']))))


def _put_in(cfg: Config, datasets: Mapping[str, dict[str, Any]]) -> None:
    """Put datasets in the place of a config's own; its model gets as many classes as the first has."""
    pipeline = next(iter_dataset_cfgs(cfg.train_dataloader.dataset)).get('pipeline') or []
    for key in [each for each in cfg if each.endswith((_LOADER, '_evaluator'))]:
        cfg.pop(key)
    for split, dataset in datasets.items():
        cfg[split + _LOADER] = dict(dataset=dict(dataset, pipeline=pipeline))
    head = cfg.model.get('bbox_head')
    if head:
        head.num_classes = len(next(iter(datasets.values()))['metainfo']['classes'])
    cfg.load_from = None
