"""Other ways to make detections of the same raw maps: one forward pass a run, a measurement a way.

Boxes of both heads are held inside their image here, which mmdet's YOLOv3 leaves out: worth 0.009 AP to it on BCCD.

Shapes: B images, D channels of a prediction map, H x W cells.
"""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.evaluator import Evaluator
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.accuracy_report import CONFIGURED, METRICS, OURS, PEER, Score
from benchmarks.trials import Finished, config_of
from mgdet_plugin.models.multigrid_head import MultiGridHead
from mgdet_plugin.runs.held_out import HeldOut, quiet

Maps = tuple[Tensor, ...]  # each (B, D, H, W)


@dataclass(frozen=True)
class Scoring:
    """A way to make detections of raw maps.

    Attributes:
        test_cfg: What differs from the head's; ``nms`` states what differs from its.
        score_factors: In place of the coder's; None keeps them.
    """
    test_cfg: Mapping[str, Any] = field(default_factory=dict)
    score_factors: tuple[str, ...] | None = None


def _nms(**options: Any) -> Scoring:
    return Scoring(dict(nms=options))


SCORINGS: dict[str, dict[str, Scoring]] = {
    OURS: {
        'single label': Scoring(dict(multi_label=False)),
        'multi label': Scoring(dict(multi_label=True, nms=dict(class_agnostic=False))),
        'standard': _nms(type='standard', votes=1),
        'diou': _nms(type='diou', votes=1),
        'soft (Gaussian)': _nms(type='soft', decay='gaussian', votes=1),
        'cluster weighted': _nms(type='cluster', mode='weighted', votes=1),
        'five votes': _nms(type='cluster', mode='weighted', votes=5, class_agnostic=False),
        'five votes, threshold 0.55': _nms(type='cluster', mode='weighted', votes=5, class_agnostic=False,
                                           iou_threshold=0.55),
        'overlap iol': _nms(overlap='iol'),
        'anchor in the score': Scoring(score_factors=('objectness', 'anchor', 'class')),
    },
    # By its config the peer drops what has a class probability below 0.05.
    PEER: {'score_thr 0.005': Scoring(dict(score_thr=0.005))},
}
"""Head -> name -> way."""


def score_run(data: str, head: str, run: Finished, ways: Mapping[str, Scoring]) -> list[Score]:
    """Measure a run's last weights on its test set, as configured and in other ways.

    Args:
        data: Name of the data set.
        head: Name of the case.
        run: The run.
        ways: Name -> other way; one that changes nothing is left out.

    Returns:
        One entry a way, that of the config first.

    Raises:
        UserError: The weights or the data set are missing or do not fit.
    """
    cfg = config_of(run.trial)
    tests = HeldOut.of_tests({data: cfg})
    state = tests.read(str(run.folder / f'epoch_{cfg.train_cfg.max_epochs}.pth'))
    tests.model.load_state_dict(state, strict=True)
    maps = RawMaps(tests.model, *tests.domains[data])
    return [Score(data, head, name, run.trial.seed, maps.metrics(way))
            for name, way in distinct(tests.model.bbox_head, ways).items()]


def distinct(head: Any, ways: Mapping[str, Scoring]) -> dict[str, Scoring]:
    """The head's own way and those among others that differ from it.

    Args:
        head: Of mmdet or MultiGrid, with its ``test_cfg``.
        ways: Name -> way.
    """
    own = Scoring()
    return {CONFIGURED: own, **{name: way for name, way in ways.items() if _effect(head, way) != _effect(head, own)}}


def settings(head: Any, way: Scoring) -> ConfigDict:
    """The whole test_cfg of a way.

    Args:
        head: Of mmdet or MultiGrid, with its ``test_cfg``.
        way: What differs.
    """
    whole = copy.deepcopy(dict(head.test_cfg))
    return ConfigDict({**whole, **way.test_cfg, 'nms': {**whole['nms'], **way.test_cfg.get('nms', {})}})


def _effect(head: Any, way: Scoring) -> Any:
    whole = settings(head, way)
    if not isinstance(head, MultiGridHead):
        return whole
    return {**whole, 'nms': head.nms_options(whole)}, way.score_factors or head.bbox_coder.score_factors


class RawMaps:
    """The raw maps of a test set, from one forward pass, in memory.

    Args:
        model: A single-stage detector; it is left in evaluation mode.
        loader: Of the test set.
        evaluator: Takes detections.
    """

    @torch.no_grad()
    def __init__(self, model: SingleStageDetector, loader: DataLoader, evaluator: Evaluator) -> None:
        self.model = model.eval()
        self.evaluator = evaluator
        self.images = len(loader.dataset)  # type: ignore[arg-type]
        self.batches: list[tuple[Maps, SampleList]] = []
        for batch in loader:
            data = self.model.data_preprocessor(batch, False)
            outs = self.model.bbox_head(self.model.extract_feat(data['inputs']))
            # MultiGrid takes and gives its maps as one argument
            maps = outs if isinstance(self.model.bbox_head, MultiGridHead) else outs[0]
            self.batches.append((tuple(maps), data['data_samples']))

    @torch.no_grad()
    def metrics(self, way: Scoring) -> dict[str, float]:
        """Metrics of a way, by the names of :data:`METRICS`; 0 where nothing is detected.

        Args:
            way: How detections are made.
        """
        head = self.model.bbox_head
        whole = settings(head, way)
        with quiet(), _score_factors(head, way.score_factors):
            for maps, samples in self.batches:
                found = head.predict_by_feat(tuple(level.clone() for level in maps),  # mmdet's head writes into them
                                             [each.metainfo for each in samples], cfg=whole, rescale=True)
                for each, sample in zip(found, samples):
                    each.bboxes = clip(each.bboxes, sample.ori_shape)
                self.evaluator.process(self.model.add_pred_to_datasample(samples, found))
            measured = self.evaluator.evaluate(self.images)
        return {name: float(measured.get(key, 0.0)) for name, key in METRICS.items()}


def clip(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Boxes (M, 4) held inside an image of (height, width), in pixels; mmdet's YOLOv3 leaves them outside."""
    height, width = shape[:2]
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


@contextmanager
def _score_factors(head: Any, factors: Sequence[str] | None) -> Iterator[None]:
    """Within it the head's coder multiplies these factors; None leaves it as it is."""
    if factors is None:
        yield
        return
    own = head.bbox_coder.score_factors
    head.bbox_coder.score_factors = tuple(factors)
    try:
        yield
    finally:
        head.bbox_coder.score_factors = own
