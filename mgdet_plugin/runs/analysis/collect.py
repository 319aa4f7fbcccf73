"""What weights find on a labelled set, and its truth: that of its evaluator's COCO file, else the dataset's own."""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader
from tqdm import tqdm

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import DELAY
from mgdet_plugin.engine.loops.validation import check_letterbox
from mgdet_plugin.runs.analysis.matching import ImageResult, sorted_result

Objects = list[tuple[list[float], int, bool, float]]
"""Box [x, y, width, height] in pixels of the picture, label, whether it is a crowd, area."""


@torch.inference_mode()
def collect(model: Any, loader: DataLoader, evaluator: Evaluator | None, name: str) -> list[ImageResult]:
    """Let a model look at all pictures of a set.

    Args:
        model: Any detector of mmdet.
        loader: Gives its test step what it takes.
        evaluator: The set's.
        name: Of the set, for a person.

    Returns:
        The pictures in the order of their ids, as COCO's evaluator goes through them.

    Raises:
        UserError: Nothing is labelled there, or boxes would be shifted by a letterbox.
    """
    dataset: Any = loader.dataset
    infos = {info['img_id']: info for info in map(dataset.get_data_info, range(len(dataset)))}
    truth = truth_of(infos, dataset.metainfo['classes'], evaluator)
    if all(crowd for objects in truth.values() for _, _, crowd, _ in objects):
        raise UserError(f'the {name} has {len(dataset):,} pictures and no object labelled on them: there is nothing to '
                        'measure against; give a config whose set is labelled, or --split val')
    model.eval()
    found = []
    for batch in tqdm(loader, desc=name, delay=DELAY, leave=False, file=sys.stderr, disable=not sys.stderr.isatty()):
        check_letterbox(model, batch['data_samples'])
        for sample in model.test_step(batch):
            corners, scores, labels = (sample.pred_instances[key].cpu().numpy()
                                       for key in ('bboxes', 'scores', 'labels'))
            boxes = corners.astype(float).reshape(-1, 4)
            boxes[:, 2:] -= boxes[:, :2]
            image = sample.get('img_id')
            if image not in truth:
                raise UserError(f'the pipeline of the {name} packs no img_id of its pictures, got {image!r}; add '
                                "'img_id' to the meta_keys of its PackDetInputs")
            drawn, classes, crowd, areas = zip(*truth[image]) if truth[image] else ((), (), (), ())
            path = str(infos[image].get('img_path', ''))
            found.append(sorted_result(image, path, drawn, classes, crowd, areas, boxes, scores, labels))
    return sorted(found, key=lambda each: (isinstance(each.image, str), each.image))


def truth_of(infos: Mapping[Any, Mapping[str, Any]], classes: Sequence[str],
             evaluator: Evaluator | None) -> Mapping[Any, Objects]:
    """Id of each picture of a set -> its objects.

    Args:
        infos: Id of a picture -> what its dataset says of it.
        classes: Names of the dataset's classes.
        evaluator: The set's.
    """
    coco = next((metric._coco_api for metric in getattr(evaluator, 'metrics', ())
                 if isinstance(metric, CocoMetric) and metric._coco_api is not None), None)
    if coco is not None:  # with the areas of masks, and boxes that the dataset leaves out
        places = {each: label for label, each in enumerate(coco.get_cat_ids(cat_names=classes))}
        return {image: [
            ([float(side) for side in each['bbox']], places[each['category_id']], bool(each.get('iscrowd')),
             float(each.get('area', np.prod(each['bbox'][2:])))) for each in coco.imgToAnns[image]
            if each['category_id'] in places] for image in infos}
    return {image: [_object(each) for each in info.get('instances', ())] for image, info in infos.items()}


def _object(instance: Mapping[str, Any]) -> tuple[list[float], int, bool, float]:
    left, top, right, bottom = map(float, instance['bbox'])
    width, height = right - left, bottom - top
    return [left, top, width, height], int(instance['bbox_label']), bool(instance.get('ignore_flag')), width * height
