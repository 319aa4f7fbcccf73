"""COCO's metric by the evaluator of faster-coco-eval, where that is installed; its figures are those of CocoMetric."""
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS
from mmengine.fileio.handlers.json_handler import set_default
from mmengine.logging import MMLogger
from pycocotools.cocoeval import COCOeval

PACKAGE = 'faster_coco_eval'


@METRICS.register_module(force=True)  # onedl-mmdetection has one of this name, which needs the package
class FasterCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric``, all its options and figures, several times as fast on large sets.

    Only the evaluator is another, that of the package faster-coco-eval (``pip install 'mgdet[fast-eval]'``). Where it
    is not installed, and for what it is not known to count as pycocotools does (masks, an annotation with the id 0,
    image ids that are no numbers), pycocotools' own evaluates.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The figures of processed results."""
        if find_spec(PACKAGE) is None:
            return super().compute_metrics(results)
        MMLogger.get_current_instance().info(f'evaluated by {PACKAGE}')
        with _in_place_of(COCOeval=_evaluator, dump=_dump):
            return super().compute_metrics(results)


@contextmanager
def _in_place_of(**others: Any) -> Iterator[None]:
    """Let mmdet's module of ``CocoMetric`` find other things by some of its names."""
    own = {name: getattr(coco_metric, name) for name in others}
    vars(coco_metric).update(others)
    try:
        yield
    finally:
        vars(coco_metric).update(own)


def _evaluator(truth: Any, detections: Any, iou_type: str) -> Any:
    """The evaluator for some annotations, with pycocotools' names and order of figures."""
    if iou_type != 'bbox' or 0 in truth.anns or not all(isinstance(each, int) for each in truth.imgs):
        return COCOeval(truth, detections, iou_type)
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    class Evaluator(COCOeval_faster):
        """Sums up as pycocotools does: its mean AP is at 100 detections, whatever the largest number."""
        summarize = COCOeval.summarize

    return Evaluator(truth, detections, iou_type, print_function=lambda *_: None)


def _dump(content: Any, path: str) -> None:
    """Write JSON as mmengine's ``dump`` does, by the encoder written in C."""
    Path(path).write_text(json.dumps(content, default=set_default))
