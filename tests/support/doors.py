"""One tiny detector, pictures that are square, wide and tall, and every door through which they are predicted on.

A new door is a function and a line of :data:`DOORS`; a new format a function and a line of :data:`FORMATS`. What each
gives is held against a reference that knows no metas and no loop. ``python -m tests.support.doors`` prints the figures.
"""
from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import numpy as np
import torch
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, TestLoop, ValLoop
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from mgdet_plugin.engine.loops.loss_val_loop import LossValLoop
from mgdet_plugin.engine.loops.validation import measure
from mgdet_plugin.models.maths.letterbox import letterbox_geometry, letterbox_image
from mgdet_plugin.runs.analysis.analysis import OVERLAPS
from mgdet_plugin.runs.analysis.average_precision import precision_curves
from mgdet_plugin.runs.analysis.collect import collect
from mgdet_plugin.runs.analysis.matching import match_all
from mgdet_plugin.runs.held_out import HeldOut, quiet

SCALE = (128, 96)
SIZES = dict(square=(100, 100), wide=(150, 61), tall=(47, 131))  # (w, h); the paddings of the last two are odd
CLASSES = ('red', 'blue')
META = dict(classes=CLASSES, palette=[(0, 255, 0), (255, 255, 0)])
USUAL = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')  # mmdet's in its own test pipelines
KEYS = dict(ours=(*USUAL, 'pad_param'), usual=USUAL, default=None)
ORDERS = ('boxes after', 'boxes before')
PIPELINES = ((ORDERS[0], 'ours'), (ORDERS[0], 'usual'), (ORDERS[1], 'ours'), (ORDERS[1], 'default'))
DETECTIONS = dict[str, tuple[Tensor, Tensor, Tensor]]


@MODELS.register_module(force=True)
class ColourMaps(nn.Module):
    """Mean colours of the cells of each level, (B, 3, H, W), coarse first."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(avg_pool2d(x, stride) for stride in (32, 16, 8))


@METRICS.register_module(force=True)
class Kept(BaseMetric):
    """What metrics see."""
    seen: list[dict[str, Any]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.seen.extend(copy.deepcopy(list(data_samples)))
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        return {}


class Case(NamedTuple):
    """Pictures in a format, behind a pipeline."""
    cfg: Config
    folder: Path

    @property
    def loader(self) -> Any:
        return Runner.build_dataloader(copy.deepcopy(self.cfg.test_dataloader), seed=0)

    def evaluator(self, loader: Any) -> Evaluator:
        made = Evaluator(copy.deepcopy(self.cfg.test_evaluator))
        made.dataset_meta = loader.dataset.metainfo
        return made

    @property
    def model(self) -> Any:
        return detector()


MODEL = dict(
    type='MultiGridDet', backbone=dict(type='ColourMaps'),
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
                           pad_size_divisor=32),
    bbox_head=dict(type='MultiGridHead', num_classes=2, in_channels=(3, 3, 3), strides=(32, 16, 8),
                   anchors=[[(90, 90)] * 3, [(60, 60)] * 3, [(26, 22)] * 3], bridge_channels=(3, 3, 3)),
    test_cfg=dict(score_thr=0.2, nms_pre=1000, max_per_img=50, nms=dict(type='diou', iou_threshold=0.3)))


@cache
def detector() -> Any:
    """A detector of pure red and blue: nothing else has so little green."""
    init_default_scope('mmdet')
    model = MODELS.build(Config(dict(model=copy.deepcopy(MODEL))).model)
    with torch.no_grad():
        for level, (bridge, predict) in enumerate(zip(model.bbox_head.bridges, model.bbox_head.predict_convs)):
            nn.init.dirac_(bridge.conv.weight)
            predict.weight.zero_(), predict.bias.zero_()
            predict.weight[2:4, 0], predict.weight[0, 2] = 0.2, 0.4  # boxes follow the colours a little
            predict.weight[4, 1], predict.bias[4] = -16, 4 if level == 2 else -20  # objectness
            predict.weight[8, 0], predict.weight[8, 2], predict.weight[9, 0], predict.weight[9, 2] = 8, -8, -8, 8
    return model.eval()


@cache
def truth() -> dict[str, tuple[list, list, list]]:
    """Name of a picture -> boxes xyxy, labels and whether each is ignored, in pixels of the picture."""
    made = {}
    rng = np.random.RandomState(3)
    for name, (width, height) in SIZES.items():
        _, _, new_w, _ = letterbox_geometry((width, height), SCALE)
        w, h = round(24 * width / new_w), round(21 * width / new_w)
        places = [(0.07, 0.11), (0.9, 0.85), (0.5, 0.45)] if name == 'square' else [(0.13, 0.06), (0.83, 0.9)]
        boxes = []
        for x, y in places:
            left, top = int(x * (width - w)) + rng.randint(2), int(y * (height - h))
            boxes.append([left, top, left + w, top + h])
        made[name] = boxes, [index % 2 for index in range(len(boxes))], [index == 2 for index in range(len(boxes))]
    return made


def true_boxes(name: str, ignored: bool = False) -> Tensor:
    """Those of a picture that are ignored, or all others, (G, 4)."""
    boxes, _, flags = truth()[name]
    return torch.tensor([box for box, flag in zip(boxes, flags) if flag == ignored]).float().reshape(-1, 4)


def write_pictures(folder: Path) -> None:
    """Rectangles of red and blue on grey noise, and their boxes as COCO and VOC."""
    rng = np.random.RandomState(0)
    for part in ('JPEGImages', 'Annotations'):
        (folder / part).mkdir(parents=True)
    images, annotations = [], []
    for number, (name, (boxes, labels, ignored)) in enumerate(truth().items()):
        width, height = SIZES[name]
        pixels = rng.randint(90, 160, (height, width, 1)).repeat(3, 2).astype(np.uint8)
        objects = ''
        for (x1, y1, x2, y2), label, ignore in zip(boxes, labels, ignored):
            pixels[y1:y2, x1:x2] = rng.randint(0, 30, (y2 - y1, x2 - x1, 3))
            pixels[y1:y2, x1:x2, label * 2] += 220
            annotations.append(dict(id=len(annotations) + 1, image_id=number, category_id=label, iscrowd=int(ignore),
                                    bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1)))
            corners = ''.join(f'<{key}>{value + 1}</{key}>' for key, value in
                              zip(('xmin', 'ymin', 'xmax', 'ymax'), (x1, y1, x2, y2)))  # VOC counts from 1
            objects += (f'<object><name>{CLASSES[label]}</name><difficult>{int(ignore)}</difficult>'
                        f'<bndbox>{corners}</bndbox></object>')
        Image.fromarray(pixels).save(folder / 'JPEGImages' / f'{name}.jpg', quality=100, subsampling=0)
        images.append(dict(id=number, file_name=f'{name}.jpg', width=width, height=height))
        (folder / 'Annotations' / f'{name}.xml').write_text(
            f'<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>')
    (folder / 'list.txt').write_text('\n'.join(SIZES))
    parts = dict(all=images, first=images[:1], rest=images[1:])
    for name, some in parts.items():
        ids = [each['id'] for each in some]
        (folder / f'{name}.json').write_text(json.dumps(dict(
            images=some, annotations=[each for each in annotations if each['image_id'] in ids],
            categories=[dict(id=index, name=each) for index, each in enumerate(CLASSES)])))
    torch.save(dict(state_dict=detector().state_dict(), meta=dict(dataset_meta=META)), folder / 'weights.pth')


def coco(folder: Path, pipeline: list, ann_file: str = 'all.json') -> dict[str, Any]:
    return dict(type='CocoDataset', data_root=f'{folder}/', ann_file=ann_file, data_prefix=dict(img='JPEGImages/'),
                metainfo=META, test_mode=True, serialize_data=False, pipeline=pipeline)


def voc(folder: Path, pipeline: list) -> dict[str, Any]:
    return dict(type='VOCDataset', data_root=f'{folder}/', ann_file='list.txt', data_prefix=dict(sub_data_root=''),
                metainfo=META, test_mode=True, serialize_data=False, pipeline=pipeline)


def concatenated(folder: Path, pipeline: list) -> dict[str, Any]:
    return dict(type='ConcatDataset', datasets=[coco(folder, pipeline, 'first.json'),
                                                coco(folder, pipeline, 'rest.json')])


FORMATS: dict[str, Callable[[Path, list], dict[str, Any]]] = dict(COCO=coco, VOC=voc, concatenated=concatenated)


def case_of(folder: Path, kind: str, order: str, keys: str) -> Case:
    """The pictures in a format, boxes loaded in an order, metas of some keys."""
    load = [dict(type='LoadAnnotations', with_bbox=True), dict(type='DropDegenerateBoxes')]
    fit = [dict(type='Letterbox', scale=SCALE)]
    pack = dict(type='PackDetInputs', **({} if KEYS[keys] is None else dict(meta_keys=KEYS[keys])))
    pipeline = [dict(type='LoadImageFromFile'), *(fit + load if order == ORDERS[0] else load + fit), pack]
    metrics = [dict(type='VOCMetric', metric='mAP', iou_thrs=[0.5, 0.6]), dict(type='Kept')]
    if kind != 'VOC':  # CocoMetric finds images by the numbers of its file
        metrics.append(dict(type='CocoMetric', ann_file=f'{folder}/all.json', metric='bbox'))
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                  dataset=FORMATS[kind](folder, pipeline))
    flat = dict(loader, dataset=coco(folder, pipeline))  # DetInferencer reads the pipeline of no wrapper
    return Case(Config(dict(model=MODEL, test_dataloader=loader, test_evaluator=metrics, flat=flat, test_cfg=dict(),
                            default_scope='mmdet', visualizer=dict(type='DetLocalVisualizer'))), folder)


def _runner(model: Any) -> Any:
    return SimpleNamespace(model=model, visualizer=SimpleNamespace(dataset_meta=None), logger=Mock(), call_hook=Mock())


def _looped(kind: Callable[..., Any], case: Case, method: str = 'run') -> dict[str, float]:
    loader = case.loader
    return getattr(kind(_runner(case.model), loader, case.evaluator(loader)), method)()


def validation_loop(case: Case) -> dict[str, float]:
    return _looped(LossValLoop, case)


def baselines(case: Case) -> dict[str, float]:
    return _looped(LossValLoop, case, 'measure')


def mmdet_val_loop(case: Case) -> dict[str, float]:
    return _looped(ValLoop, case)


def mmdet_test_loop(case: Case) -> dict[str, float]:
    return _looped(TestLoop, case)


def compared(case: Case) -> dict[str, float]:
    held = HeldOut(case.cfg, dict(new=dict(dataloader=case.cfg.test_dataloader, evaluator=case.cfg.test_evaluator)))
    return held.measure(case.model.state_dict())['new']


def evaluated(case: Case) -> dict[str, float]:
    """Pictures whose truth and detections are judged one by one."""
    loader = case.loader
    results = collect(case.model, loader, case.evaluator(loader), 'set')
    for each in results:
        true, found = (np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]], 1) for part in (each.truth, each.boxes))
        gt, ignored = (dict(bboxes=torch.from_numpy(true[each.crowd == flag]).float()) for flag in (False, True))
        Kept.seen.append(dict(img_path=each.path, gt_instances=gt, ignored_instances=ignored, pred_instances=dict(
            bboxes=torch.from_numpy(found).float(), labels=torch.from_numpy(each.labels))))
    average = precision_curves(match_all(results, len(CLASSES), OVERLAPS)).average
    return {'coco/bbox_mAP': round(average.mean(), 3), 'coco/bbox_mAP_50': round(average[0].mean(), 3)}


def subset(case: Case) -> dict[str, float]:
    """Images picked from a set, as the guard and blending do it."""
    loader = case.loader
    some: Any = torch.utils.data.Subset(loader.dataset, range(len(loader.dataset)))
    some.metainfo = loader.dataset.metainfo
    return measure(case.model, torch.utils.data.DataLoader(some, batch_size=3, collate_fn=loader.collate_fn),
                   case.evaluator(loader))


def head(case: Case) -> dict[str, float]:
    for batch in case.loader:
        data = case.model.data_preprocessor(batch, False)
        found = case.model.bbox_head.predict(case.model.extract_feat(data['inputs']), data['data_samples'],
                                             rescale=True)
        _keep(found, [sample.img_path for sample in data['data_samples']])
    return {}


def _keep(found: Sequence[InstanceData], paths: Sequence[Any]) -> None:
    Kept.seen.extend(dict(img_path=str(path), pred_instances=each) for each, path in zip(found, paths))


def _inferred(case: Case, load: Callable[[Path], Any]) -> dict[str, float]:
    from mmdet.apis import DetInferencer  # not before the package
    cfg = copy.deepcopy(case.cfg)
    cfg.test_dataloader = cfg.flat
    inferencer = DetInferencer(model=cfg, weights=str(case.folder / 'weights.pth'), device='cpu', show_progress=False)
    paths = [case.folder / 'JPEGImages' / f'{name}.jpg' for name in SIZES]
    found = inferencer([load(path) for path in paths], return_datasamples=True, no_save_vis=True)['predictions']
    _keep([each.pred_instances for each in found], paths)
    return {}


def inferencer_by_path(case: Case) -> dict[str, float]:
    return _inferred(case, str)


def inferencer_by_array(case: Case) -> dict[str, float]:
    return _inferred(case, lambda path: np.asarray(Image.open(path))[..., ::-1])  # BGR, as mmdet reads images


DOORS: dict[str, Callable[[Case], dict[str, float]]] = {
    'LossValLoop': validation_loop, 'baselines': baselines, 'mmdet ValLoop': mmdet_val_loop,
    'mmdet TestLoop': mmdet_test_loop, 'compare, blend': compared, 'evaluate': evaluated, 'subset': subset,
    'head.predict': head, 'DetInferencer, path': inferencer_by_path, 'DetInferencer, array': inferencer_by_array}


@torch.no_grad()
def reference(folder: Path) -> tuple[DETECTIONS, dict[str, float], float]:
    """Detections of each picture by the rule of the letterbox alone, what the metrics say of them, and the loss."""
    model, found, losses = detector(), {}, []
    samples = []
    for number, (name, (boxes, labels, ignored)) in enumerate(truth().items()):
        image = np.asarray(Image.open(folder / 'JPEGImages' / f'{name}.jpg'))
        (width, height), kept = SIZES[name], [index for index, each in enumerate(ignored) if not each]
        left, top, new_w, new_h = letterbox_geometry((width, height), SCALE)
        inputs = torch.from_numpy(letterbox_image(image, SCALE)).permute(2, 0, 1)[None] / 255
        maps = model.bbox_head(model.extract_feat(inputs))
        one, = model.bbox_head.predict_by_feat(maps, [dict(img_shape=(10 ** 6, 10 ** 6))])
        shift, scale = torch.tensor([left, top] * 2), torch.tensor([new_w / width, new_h / height] * 2)
        edge = torch.tensor([width, height] * 2)
        found[name] = ((one.bboxes - shift) / scale).clamp(min=0).minimum(edge), one.scores, one.labels
        true, own = torch.tensor(boxes).float(), torch.tensor(labels)
        other = [index for index in range(len(boxes)) if index not in kept]
        inside = [InstanceData(bboxes=(true * scale + shift)[part], labels=own[part]) for part in (kept, other)]
        terms = model.bbox_head.loss_by_feat(maps, inside[:1], [{}], inside[1:])
        losses.append(float(sum(terms.values())))
        samples.append(dict(img_id=number, ori_shape=(height, width), gt_instances=dict(bboxes=true[kept],
                                                                                        labels=own[kept]),
                            ignored_instances=dict(bboxes=true[other], labels=own[other]),
                            pred_instances=dict(zip(('bboxes', 'scores', 'labels'), found[name]))))
    evaluator = Evaluator(case_of(folder, 'COCO', ORDERS[0], 'ours').cfg.test_evaluator)
    evaluator.dataset_meta = META
    evaluator.process(samples)
    return found, evaluator.evaluate(len(samples)), sum(losses) / len(losses)


class Figures(NamedTuple):
    """How far a door is from the reference: pixels of detections and of truth, AP, and the relative loss."""
    boxes: float
    truth: float
    ap: float
    loss: float


@contextmanager
def settled() -> Iterator[None]:
    """Quiet metrics that do not start processes."""
    with quiet(), patch('mmdet.evaluation.functional.mean_ap.Pool', ThreadPool), torch.no_grad():
        yield


def figures(door: str, case: Case, expected: tuple[DETECTIONS, dict[str, float], float]) -> Figures:
    """Go through a door and compare. Detections that differ in number are infinitely far."""
    found, metrics, loss = expected
    Kept.seen.clear()
    with settled():
        given = DOORS[door](case)
    far = dict(boxes=0.0, truth=0.0)
    assert sorted(Path(sample['img_path']).stem for sample in Kept.seen) == sorted(SIZES)
    for sample in Kept.seen:
        name = Path(sample['img_path']).stem
        pred, (boxes, _, labels) = sample['pred_instances'], found[name]
        same = len(pred['bboxes']) == len(boxes) and torch.equal(pred['labels'], labels)
        far['boxes'] = max(far['boxes'], distance(pred['bboxes'], boxes) if same else np.inf)
        if 'gt_instances' in sample:
            for ignored, key in enumerate(('gt_instances', 'ignored_instances')):
                far['truth'] = max(far['truth'], distance(sample[key]['bboxes'], true_boxes(name, bool(ignored))))
    ap = max((abs(given[key] - value) for key, value in metrics.items() if key in given), default=0.0)
    own_loss = given.get('val/loss', given.get('loss', loss))
    return Figures(far['boxes'], far['truth'], ap, abs(own_loss / loss - 1))


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference of coordinates of equally many boxes."""
    return float((one - other).abs().max()) if len(one) == len(other) and len(one) else float(
        np.inf if len(one) != len(other) else 0)


def main() -> None:
    """Print the matrix: the worst of all pipelines of each door and format, and how many are wrong."""
    folder = Path(tempfile.mkdtemp()) / 'set'
    write_pictures(folder)
    with settled():
        expected = reference(folder)
    print(f'reference: {expected[1]}, loss {expected[2]:.3f}')
    print('| door | format | boxes, px | truth, px | AP | loss | wrong of 4 |\n|---|---|---|---|---|---|---|')
    for door, kind in product(DOORS, FORMATS):
        rows = {(order, keys): figures(door, case_of(folder, kind, order, keys), expected)
                for order, keys in PIPELINES}
        worst = [max(column) for column in zip(*rows.values())]
        wrong = sum(row.boxes > 1e-3 or row.truth > 1e-3 or row.ap > 1e-6 or row.loss > 1e-5 for row in rows.values())
        print(f'| {door} | {kind} | ' + ' | '.join(f'{value:.2g}' for value in worst) + f' | {wrong} |')


if __name__ == '__main__':
    main()
