"""Drawn truth and detections, as data samples that metrics of mmdet take: ties, crowds, duplicates, empty pictures."""
from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from pycocotools.cocoeval import COCOeval

from mgdet_plugin.runs.analysis.matching import ImageResult, sorted_result


def drawn_samples(count: int, classes: int, seed: int = 0, per_image: int = 12) -> list[dict[str, Any]]:
    """Samples of pictures of 640 pixels, the last class without truth; every fifth has no truth, every seventh no find.

    Scores have two digits, so that many are equal; boxes and truth have sizes of all three of COCO's ranges.
    """
    rng = np.random.default_rng(seed)
    return [_sample(rng, index, classes, per_image) for index in range(count)]


def _sample(rng: np.random.Generator, index: int, classes: int, per_image: int) -> dict[str, Any]:
    objects = 0 if index % 5 == 4 else rng.integers(1, 8)
    corners = rng.uniform(0, 400, (objects, 2))
    truth = np.concatenate([corners, corners + rng.lognormal(4, 0.9, (objects, 2))], 1)
    labels = rng.integers(0, classes - 1, objects)
    crowd = rng.random(objects) < 0.15
    found = 0 if index % 7 == 6 else per_image
    at = rng.integers(0, objects, found) if objects else np.zeros(found, int)
    boxes = truth[at] if objects else rng.uniform(0, 200, (found, 4)) + np.array([0, 0, 200, 200])
    boxes = boxes + rng.normal(0, 1, (found, 4)) * rng.choice([0, 2, 15], (found, 1))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    named = np.where(rng.random(found) < 0.7, labels[at] if objects else 0, rng.integers(0, classes, found))
    instances = [dict(bbox=box.tolist(), bbox_label=int(label), ignore_flag=int(ignored))
                 for box, label, ignored in zip(truth, labels, crowd)]
    return dict(img_id=index, ori_shape=(640, 640), instances=instances, pred_instances=dict(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(rng.random(found).round(2), dtype=torch.float32), labels=torch.tensor(named)))


def results_of(samples: list[dict[str, Any]]) -> list[ImageResult]:
    """The samples as pictures whose truth and detections are judged."""
    found = []
    for each in samples:
        truth = [to_xywh(one['bbox']) for one in each['instances']]
        pred = each['pred_instances']
        found.append(sorted_result(
            each['img_id'], '', truth, [one['bbox_label'] for one in each['instances']],
            [one['ignore_flag'] for one in each['instances']], [box[2] * box[3] for box in truth],
            [to_xywh(box) for box in pred['bboxes'].tolist()], pred['scores'].numpy(), pred['labels'].numpy()))
    return found


def to_xywh(box: Sequence[float]) -> list[float]:
    """Corners as corner, width and height."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def coco_evaluation(samples: list[dict[str, Any]], classes: int, folder: Path, kind: Any = COCOeval,
                    **params: Any) -> Any:
    """What COCO's evaluator, or another of its form, makes of samples; ``params`` are set of its own."""
    metric = CocoMetric()
    metric.dataset_meta = dict(classes=[str(label) for label in range(classes)])
    metric.cat_ids = list(range(classes))
    metric.process({}, samples)
    truth, found = zip(*metric.results)
    with redirect_stdout(StringIO()):
        api = COCO(metric.gt_to_coco_json(truth, f'{folder}/truth'))
        files = metric.results2json(found, f'{folder}/found')
        evaluator = kind(api, api.loadRes(json.loads(Path(files['bbox']).read_text())), 'bbox')
        vars(evaluator.params).update(params)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator
