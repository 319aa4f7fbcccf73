"""FasterCocoMetric: every figure is CocoMetric's."""
import json

import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import coco_metric
from mmdet.registry import METRICS
from pycocotools.cocoeval import COCOeval

from mgdet_plugin.engine.metrics import faster_coco_metric
from tests.support.detections import coco_evaluation, drawn_samples

CLASSES = tuple('abcd')
OPTIONS = [dict(classwise=True), dict(metric=['bbox', 'proposal']), dict(iou_thrs=np.array([0.5, 0.75])),
           dict(proposal_nums=(1, 3, 100)), dict(proposal_nums=(2, 5, 9), metric=['bbox', 'proposal']),
           dict(metric_items=['mAP', 'AR_s@1000'])]


def figures(kind, samples, **options):
    metric = METRICS.build(dict(type=kind, **options))
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.fixture
def evaluators(monkeypatch):
    """Evaluators of pycocotools that were built while a FasterCocoMetric measured."""
    built = []
    monkeypatch.setattr(faster_coco_metric, 'COCOeval', type('Counted', (COCOeval, ), dict(
        __init__=lambda self, *args: (built.append(args), COCOeval.__init__(self, *args))[1])))
    return built


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_every_figure_is_that_of_coco_metric(options, evaluators):
    pytest.importorskip('faster_coco_eval')
    samples = drawn_samples(30, len(CLASSES), seed=1)
    own, ours = (figures(kind, samples, **options) for kind in ('CocoMetric', 'FasterCocoMetric'))
    assert list(ours) == list(own) and len(own) >= 2 and max(own.values()) > 0.01
    assert ours == pytest.approx(own, abs=1e-9, nan_ok=True) and not evaluators
    assert coco_metric.COCOeval is COCOeval


@pytest.mark.parametrize('use_classes', [1, 0])
def test_to_nine_digits(use_classes, tmp_path):
    """mmdet rounds to three: what is summed up is compared before that, crowds, ties and empty pictures among it."""
    pytest.importorskip('faster_coco_eval')
    samples = drawn_samples(40, len(CLASSES), seed=2, per_image=30)
    own, ours = (coco_evaluation(samples, len(CLASSES), tmp_path, kind, maxDets=[1, 10, 100], useCats=use_classes)
                 for kind in (COCOeval, faster_coco_metric._evaluator))
    assert not isinstance(ours, COCOeval) and own.stats[0] > 0.1
    assert ours.stats == pytest.approx(own.stats, abs=1e-9)
    for name in ('precision', 'recall', 'scores'):
        assert own.eval[name].shape == ours.eval[name].shape
        assert abs(own.eval[name] - ours.eval[name]).max() <= 1e-9, name


def test_nothing_detected_and_nothing_there():
    empty = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    samples = [dict(each, pred_instances=empty) for each in drawn_samples(3, 3)]
    assert figures('FasterCocoMetric', samples) == figures('CocoMetric', samples) == {}
    bare = [dict(each, instances=[]) for each in drawn_samples(3, 3)]
    bare[0]['instances'] = [dict(bbox=[0, 0, 9, 9], bbox_label=0, ignore_flag=1)]
    own, ours = (figures(kind, bare) for kind in ('CocoMetric', 'FasterCocoMetric'))
    assert ours == own and own['coco/bbox_mAP'] == -1


def test_what_only_pycocotools_counts_so(tmp_path, evaluators):
    """An annotation with the id 0, which pycocotools never sees matched, and image ids that are texts."""
    pytest.importorskip('faster_coco_eval')
    samples = drawn_samples(6, 3)
    texts = [dict(each, img_id=f'image {each["img_id"]}') for each in samples]
    assert figures('FasterCocoMetric', texts) == figures('CocoMetric', texts) and len(evaluators) == 1
    boxes = [(each['img_id'], one) for each in samples for one in each['instances']]
    path = tmp_path / 'truth.json'
    path.write_text(json.dumps(dict(
        images=[dict(id=each['img_id']) for each in samples], categories=[dict(id=1 + i, name=name) for i, name in
                                                                         enumerate(CLASSES)],
        annotations=[dict(id=i, image_id=image, category_id=1 + one['bbox_label'], iscrowd=0, area=100, bbox=[
            *one['bbox'][:2], one['bbox'][2] - one['bbox'][0], one['bbox'][3] - one['bbox'][1]])
            for i, (image, one) in enumerate(boxes)])))
    own, ours = (figures(kind, samples, ann_file=str(path)) for kind in ('CocoMetric', 'FasterCocoMetric'))
    assert ours == own and len(evaluators) == 2


def test_it_works_without_the_package(monkeypatch, evaluators):
    monkeypatch.setattr(faster_coco_metric, 'PACKAGE', 'nothing_of_this_name')
    samples = drawn_samples(6, 3)
    assert figures('FasterCocoMetric', samples) == figures('CocoMetric', samples) and not evaluators
