"""Objects nobody labelled on a set's pictures, of classes that weights know: found, and written beside its labels."""
from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet_plugin.common.errors import UserError, is_number, require
from mgdet_plugin.common.files import check_destination, write_together
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.deploy.thresholds import lower_scores

if TYPE_CHECKING:  # what is missing is told without importing mmengine
    from mmengine.config import Config

SAME_OBJECT = 0.5  # overlap (IoU) from which two boxes are of one object
SOURCE = 'weights'  # of a box that no person drew
Found = tuple[list[float], int, float]
"""Corners (x1, y1, x2, y2) in pixels of the picture, place of the class in the config, score."""


@dataclass
class Completed:
    """A set's annotations with those added to them.

    Attributes:
        content: The COCO file.
        own: How many annotations are the set's own.
        added: Class -> objects added.
        unsure: Class -> regions added to be ignored.
    """

    content: dict[str, Any]
    own: int
    added: Counter[str] = field(default_factory=Counter)
    unsure: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """What was done, for a person."""
        by_class = [f'{name} {self.added[name]:,} and {self.unsure[name]:,}'
                    for name in sorted(self.added | self.unsure, key=lambda name: (-self.added[name], name))]
        return (f'{len(self.content["images"]):,} images with {self.own:,} annotations of their own: '
                f'{self.added.total():,} objects added, {self.unsure.total():,} unsure ones to be ignored'
                + (f' ({"; ".join(by_class)})' if by_class else ''))


def complete_labels(config: str | Path, checkpoint: str, annotations: str | Path, out: str | Path,
                    images: str | Path | None = None, score_thr: float = 0.5, unsure: float = 0.1,
                    cfg_options: Mapping[str, Any] | None = None) -> Completed:
    """Write a set's annotations with what weights find of classes that it does not label.

    A class is looked for where the weights know it (it is none of the ``new_classes`` of their import) and the set
    labels no object of it: a class with labels counts as labelled everywhere. A box on a label (IoU of 0.5 or more) is
    left out. Boxes that an earlier completion added are found anew.

    Args:
        config: Path or name of the config of the weights' model, any detector of mmdet; its test set names the classes,
            and its pipeline prepares the pictures.
        checkpoint: The weights.
        annotations: COCO file of the set.
        out: COCO file to write, another one. Categories are the config's classes in their order, then others of the
            set; what was added has ``score`` and ``source='weights'``.
        images: Folder below which the set's pictures lie. Default: that of the config's training set.
        score_thr: Score from which a box is an object.
        unsure: Score from which a box is a region to be ignored (``iscrowd``), neither object nor background.
        cfg_options: Dotted keys of the config to set.

    Raises:
        UserError: A score is out of range; config, weights, annotations or pictures are missing or do not fit; there is
            no class to look for. Nothing is written.
    """
    require(is_number(score_thr) and 0 < score_thr <= 1, 'the score of a sure box must be above 0 and at most 1',
            score_thr)
    require(is_number(unsure) and 0 < unsure <= score_thr,
            f'the score of an unsure box must be above 0 and at most that of a sure one ({score_thr})', unsure)
    config, source, out = config_path(config), Path(annotations), Path(out)
    check_weights_path(checkpoint, str(config))
    require(source.is_file(), 'the annotations must be a COCO file that is there', str(source))
    check_destination(out, config, Path(checkpoint), source)
    from mmengine.config import Config

    from mgdet_plugin.datasets.formats.coco_files import load_coco
    from mgdet_plugin.deploy.draw import detections
    from mgdet_plugin.engine.config_check import checked
    content = load_coco(source)
    content['annotations'] = [each for each in content['annotations'] if each.get('source') != SOURCE]
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(cfg_options or {}))
    lower_scores(cfg.model.get('test_cfg'), unsure)
    with checked(cfg):
        names, new, state = _classes_and_weights(cfg, checkpoint)
        dataset = _pictures(cfg, source, content, images)
        wanted = _wanted(names, new, content, str(source))
        found = {dataset.get_data_info(index)['img_id']: [each for each in boxes if names[each[1]] in wanted]
                 for index, boxes in detections(cfg, state, dataset, len(dataset), unsure)}
    completed = with_found(content, names, found, score_thr)
    write_together({out: lambda stream: stream.write(json.dumps(completed.content).encode())})
    return completed


def with_found(content: Mapping[str, Any], names: Sequence[str], found: Mapping[Any, Iterable[Found]],
               score_thr: float) -> Completed:
    """The content of a COCO file with boxes added, nothing of it changed.

    Args:
        content: The file's.
        names: Classes of the config.
        found: Id of an image -> what was found on it.
        score_thr: Score from which a box is an object; others are regions to be ignored.
    """
    own = content['annotations']
    others = [each for each in content['categories'] if each['name'] not in names]
    known = {each['name']: each for each in content['categories']}
    categories = [{**each, 'id': place} for place, each in enumerate(
        [*(known.get(name, dict(name=name)) for name in names), *others], 1)]
    places = {each['name']: each['id'] for each in categories}
    renamed = {each['id']: places[each['name']] for each in content['categories']}
    annotations = [{**each, 'category_id': renamed[each['category_id']]} for each in own]
    result = Completed({**content, 'categories': categories, 'annotations': annotations}, len(own))
    next_id = 1 + max((each['id'] for each in own if isinstance(each['id'], int)), default=0)
    on_image: dict[Any, list[tuple[list[float], bool]]] = {image['id']: [] for image in content['images']}
    for each in own:
        on_image[each['image_id']].append((each['bbox'], bool(each.get('iscrowd'))))
    for image in content['images']:
        there = on_image[image['id']]
        for corners, label, score in sorted(found.get(image['id'], ()), key=lambda each: -each[2]):
            box = _within(corners, image)
            if box is None or _is_on(box, there):
                continue
            is_sure = score >= score_thr
            if is_sure:
                there.append((box, False))  # what overlaps it with a lower score is the same object
            name = names[label]
            (result.added if is_sure else result.unsure)[name] += 1
            annotations.append(dict(
                id=next_id + result.added.total() + result.unsure.total() - 1, image_id=image['id'],
                category_id=places[name], bbox=box, area=round(box[2] * box[3], 2), iscrowd=int(not is_sure),
                score=round(score, 4), source=SOURCE))
    return result


def _within(corners: Sequence[float], image: Mapping[str, Any]) -> list[float] | None:
    """The part of a box in its picture as [x, y, width, height], None where it is no pixel."""
    left, top = (max(0.0, each) for each in corners[:2])
    right, bottom = min(image['width'], corners[2]), min(image['height'], corners[3])
    if not (right - left >= 1 and bottom - top >= 1):
        return None
    return [round(each, 2) for each in (left, top, right - left, bottom - top)]


def _is_on(box: Sequence[float], there: Sequence[tuple[Sequence[float], bool]]) -> bool:
    """Whether a box is on one that is there, or lies by as much in a region of many objects (COCO's ``iscrowd``)."""
    from pycocotools.mask import iou
    if not there:
        return False
    boxes, crowds = zip(*there)
    return bool((iou([list(map(float, box))], [list(map(float, each)) for each in boxes],
                     [int(crowd) for crowd in crowds]) >= SAME_OBJECT).any())


def _classes_and_weights(cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], set[str], Any]:
    """Classes of the model, those of them that its weights do not know, and the weights, which fit the model."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from mgdet_plugin.common.checkpoints import new_classes_of
    from mgdet_plugin.datasets.formats.annotation_check import config_name, dataset_names, iter_dataset_cfgs
    from mgdet_plugin.engine.checkpoint_check import check_same_tensors, compare_stored, read_weights
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    names = dataset_names(next(iter_dataset_cfgs(cfg.test_dataloader.dataset)), 'test_dataloader.dataset')
    head = cfg.model.get('bbox_head')
    count = head.get('num_classes') if isinstance(head, Mapping) else None
    if count not in (None, len(names)):
        raise UserError(f'{config_name(cfg)}: the test set has {len(names)} classes, model.bbox_head.num_classes is '
                        f'{count}; make them equal')
    state, content = read_weights(checkpoint, cfg)
    check_same_tensors(checkpoint, state, MODELS.build(cfg.model).state_dict(), cfg)
    for line in compare_stored(checkpoint, content, cfg, 'test'):
        print(line, file=sys.stderr)
    new = new_classes_of(content, checkpoint)
    return names, {names[each] if isinstance(each, int) and each < len(names) else str(each) for each in new}, state


def _wanted(names: Sequence[str], new: set[str], content: Mapping[str, Any], source: str) -> set[str]:
    """Classes to look for: those the weights know and the set does not label."""
    from mgdet_plugin.datasets.formats.dataset_report import some
    by_id = {each['id']: each['name'] for each in content['categories']}
    labelled = {by_id[each['category_id']] for each in content['annotations']}
    wanted = set(names) - new - labelled
    if not wanted:
        raise UserError(f'{source} has labels of every class that the weights know ({some(sorted(labelled))}), and a '
                        'class with labels counts as labelled everywhere: there is none to complete')
    return wanted


def _pictures(cfg: Config, source: Path, content: Mapping[str, Any], images: str | Path | None) -> Any:
    """The set as a dataset whose pictures are prepared as those of the config's test set; checked, pictures too."""
    from mmdet.registry import DATASETS
    from mmdet.utils import get_test_pipeline_cfg
    from mmengine.config import Config

    from mgdet_plugin.datasets import Inspector, check_datasets, ensure_embedded_data
    ensure_embedded_data(cfg)
    dataset = dict(type='CocoDataset', ann_file=str(source), data_prefix=dict(img=str(images or _folder(cfg))),
                   metainfo=dict(classes=tuple(dict.fromkeys(each['name'] for each in content['categories']))),
                   pipeline=get_test_pipeline_cfg(cfg))
    sets = Config(dict(test_dataloader=dict(dataset=dataset)), filename=cfg.filename)
    for report in check_datasets(sets, ('test', ), Inspector(say=lambda line: print(line, file=sys.stderr))):
        for line in report.lines():
            print(line, file=sys.stderr)
    return DATASETS.build({**dataset, 'test_mode': True})


def _folder(cfg: Config) -> str:
    """The folder of the training set's pictures."""
    from mmdet.registry import DATASETS

    from mgdet_plugin.datasets import iter_dataset_cfgs
    leaves = iter_dataset_cfgs((cfg.get('train_dataloader') or {}).get('dataset'))
    folders = {DATASETS.build({**leaf, 'pipeline': [], 'lazy_init': True}).data_prefix.get('img') for leaf in leaves}
    if len(folders) != 1 or None in folders:
        raise UserError(f'the training set of {cfg.filename} has {len(folders)} folders of images, so that of the '
                        'annotations cannot be told; give it with --images')
    return str(folders.pop())
