"""Annotated pictures to measure a model on, and the mean AP of what it finds on them."""
from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError, is_whole, require
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.sources.annotated import Box, Hints, Picture
from mgdet_plugin.datasets.sources.find import read_annotated


def labelled_pictures(cfg: Config, classes: Sequence[str], data: str | Path | None, count: int,
                      images: str | Path | None = None) -> list[Picture]:
    """Pictures with their boxes, evenly out of a set.

    Args:
        cfg: A config; its validation set, or its test set where it has none, is taken where there is no ``data``.
        classes: Of the model; boxes of others are left out.
        data: A folder or file of annotations in any format ``init`` reads; of several splits the validation's.
        count: The most pictures.
        images: Folder of the pictures of ``data``, where it is not that of ``data``.

    Raises:
        UserError: The set is missing or wrong, or has no box of the classes.
    """
    require(is_whole(count, 1), '--count must be a whole number from 1', count)
    pictures = _of_config(cfg) if data is None else _of_data(Path(data), images)
    origin = data if data is not None else 'the validation set of the config'
    names = {box.name for picture in pictures for box in picture.boxes}
    if not names & set(classes):
        raise UserError(f"{origin} has no box of the model's classes ({some(list(classes))}), it has "
                        f'{some(sorted(names)) or "none at all"}; give annotated pictures of them with --pictures')
    if len(pictures) > count:
        pictures = [pictures[index * len(pictures) // count] for index in range(count)]
    return [Picture(each.path, tuple(box for box in each.boxes if box.name in classes)) for each in pictures]


def _of_data(data: Path, images: str | Path | None) -> list[Picture]:
    annotated = read_annotated(data, hints=Hints(images=None if images is None else Path(images)))
    for split in ('val', 'test'):
        chosen = [picture for picture in annotated.pictures if picture.split == split]
        if chosen:
            return chosen
    return list(annotated.pictures)


def _of_config(cfg: Config) -> list[Picture]:
    split = 'val' if cfg.get('val_dataloader') else 'test'
    try:
        ensure_embedded_data(cfg)
        check_datasets(cfg, (split, ))
    except UserError as error:
        raise UserError(f'the export is measured on annotated pictures, and {error}; or give others with --pictures'
                        ) from None
    pictures = []
    for leaf in iter_dataset_cfgs(cfg[f'{split}_dataloader'].dataset):
        dataset = DATASETS.build({**leaf, 'pipeline': [], 'test_mode': True})
        names = dataset.metainfo['classes']
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            pictures.append(Picture(Path(info['img_path']), tuple(
                Box(names[each['bbox_label']], _as_coco(each['bbox']), bool(each['ignore_flag']))
                for each in info['instances'])))
    return pictures


def _as_coco(corners: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = map(float, corners)
    return left, top, right - left, bottom - top


def mean_ap(pictures: Sequence[Picture], classes: Sequence[str], found: Sequence[DetDataSample]) -> float:
    """COCO's mean AP over overlaps of 0.50 to 0.95 of what was found on pictures.

    Args:
        pictures: With their boxes.
        classes: Names of the labels.
        found: A sample a picture.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    ids = {name: place for place, name in enumerate(classes, 1)}
    boxes: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        boxes += [dict(image_id=image_id, category_id=ids[box.name], bbox=list(box.bbox), iscrowd=int(box.ignore),
                       area=box.area or box.bbox[2] * box.bbox[3]) for box in picture.boxes]
    results = [dict(image_id=image_id, category_id=int(label) + 1, score=float(score), bbox=list(_as_coco(corners)))
               for image_id, sample in enumerate(found, 1)
               for corners, score, label in zip(*(sample.pred_instances[key].tolist()
                                                  for key in ('bboxes', 'scores', 'labels')))]
    if not results:
        return 0.0
    truth = COCO()
    truth.dataset = dict(info={}, images=[dict(id=index) for index in range(1, len(pictures) + 1)],
                         annotations=[{**box, 'id': index} for index, box in enumerate(boxes, 1)],
                         categories=[dict(id=place, name=name) for name, place in ids.items()])
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
