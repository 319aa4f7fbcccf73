"""What is to be examined, as plain records: the datasets of a config, or data in any format that ``init`` reads."""
from __future__ import annotations

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
from mgdet_plugin.common.resources import SUFFIXES, config_path
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.annotation_check import SPLITS, dataset_names, unread_dataset
from mgdet_plugin.datasets.formats.box_sense import BoxSense
from mgdet_plugin.datasets.formats.coco_files import load_coco
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, some
from mgdet_plugin.datasets.formats.picture_files import declared_sizes_unbounded, picture_size
from mgdet_plugin.datasets.sources.annotated import Hints, Picture
from mgdet_plugin.datasets.sources.find import FORMATS, list_files, read_annotated
from mgdet_plugin.engine.config_check import check_parts
from mgdet_plugin.prepare.faults.picture_records import TRAIN, PictureBox, PictureRecord, PictureSet
from mgdet_plugin.prepare.sound_set import sound_set

_UNREADABLE = (OSError, LookupError, TypeError, ValueError, AttributeError, OverflowError)  # of mmdet's own readers
_LOADER = '_dataloader'


def config_of(source: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """A config, whose datasets are to be examined or data are to be held against.

    Args:
        source: Its path, or its name.
        options: Dotted keys of the config to set.

    Raises:
        UserError: It is not there, or has no model or training set.
    """
    cfg = Config.fromfile(config_path(source))
    cfg.merge_from_dict(dict(options or {}))
    check_parts(cfg, 'model', 'train_dataloader')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return cfg


def is_data(source: str | Path) -> bool:
    """Whether a path is that of pictures with annotations in a format that ``init`` reads, and not that of a config."""
    path = Path(source)
    if not path.is_file():
        return path.is_dir()
    return path.suffix not in SUFFIXES or any(module.find(list_files(path)) for module in FORMATS.values())


def data_of(source: str | Path, cfg: Config, form: str | None = None, hints: Hints | None = None) -> PictureSet:
    """Data in any format that ``init`` reads, with all of their boxes; the config becomes one of their classes.

    What is in no split counts as trained on, where no split is for that.

    Args:
        source: A folder, or an annotation file.
        cfg: The config they are held against; it is changed.
        form: The format. Default: the one that is found.
        hints: What cannot be found: class names, the folder of the pictures.

    Raises:
        UserError: No format or several, no picture, or annotations that cannot be read.
    """
    annotated = read_annotated(Path(source), form, hints)
    places = {name: place for place, name in enumerate(annotated.classes)}
    given = {each.split for each in annotated.pictures}
    rest = 'no split' if TRAIN in given else TRAIN
    with declared_sizes_unbounded():
        records = [PictureRecord(str(each.path), each.size or _size_of(each), tuple(
            PictureBox((float(x), float(y), float(x + width), float(y + height)), places[box.name], box.ignore)
            for box in each.boxes for x, y, width, height in [box.bbox]), each.split or rest)
            for each in annotated.pictures]
    order = [*SPLITS, 'no split']
    records.sort(key=lambda each: order.index(each.split))
    refused = {}
    try:
        sound_set(annotated)
    except UserError as error:
        refused['all'] = str(error)
    notes = [] if given - {None} else ['no split is given: all of it is looked at as train']
    cfg.load_from = None
    if cfg.model.get('bbox_head'):
        cfg.model.bbox_head.num_classes = len(places)
    return PictureSet(annotated.classes, tuple(records), refused, form=annotated.format,
                      missing=annotated.missing, notes=(*notes, *annotated.notes))


def _size_of(picture: Picture) -> tuple[int, int] | None:
    """(w, h) by the picture's header, upright; None where it has none."""
    size = picture_size(str(picture.path))
    return size if all(size) else None


def gather(cfg: Config) -> PictureSet:
    """The pictures of a config's datasets.

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
            boxes[each['image_id']].append(
                PictureBox((x, y, x + w, y + h), places[name], bool(each.get('iscrowd')), each['id']))
    folder = Path(dataset.data_prefix['img'])
    for image in content['images']:
        yield PictureRecord(str(folder / image['file_name']), (image['width'], image['height']),
                            tuple(boxes[image['id']]), split)
