"""Whether evaluators can measure the datasets they are given: their truth, and the images it is about."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric, VOCMetric
from mmdet.registry import METRICS

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.coco_files import load_coco
from mgdet_plugin.datasets.formats.dataset_report import DatasetReport, some
from mgdet_plugin.datasets.formats.file_places import is_remote, require_path

_OWN_TRUTH = "name 'instances' in meta_keys of PackDetInputs: the truth is then that of the dataset itself"


def check_evaluators(name: str, evaluators: Any, leaves: Sequence[Mapping[str, Any]],
                     reports: Sequence[DatasetReport]) -> None:
    """Check the evaluators of one dataloader.

    Args:
        name: of the evaluators in the config, for messages.
        evaluators: config of one or a list of them, or None.
        leaves: configs of the datasets inside the dataloader's.
        reports: what these hold, in their order.

    Raises:
        UserError: a metric has no truth to compare with, or one of other images.
    """
    listed = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators] if evaluators else []
    for evaluator in listed:
        if not isinstance(evaluator, Mapping):
            raise UserError(f'{name} holds {evaluator!r}; dict(type=METRIC) is needed')
        kind = evaluator.get('type')
        cls = METRICS.get(kind) if isinstance(kind, str) else kind
        if not isinstance(cls, type) or not leaves:
            continue
        if issubclass(cls, VOCMetric):
            _require_in_pipelines(name, f'{kind} takes the truth from the pipeline', leaves, 'LoadAnnotations',
                                  "put dict(type='LoadAnnotations', with_bbox=True) after the loading of the image")
        if issubclass(cls, CocoMetric):
            _require_own_ids(name, reports)
        if issubclass(cls, CocoMetric) and evaluator.get('ann_file') is None:
            _require_in_pipelines(name, f'{kind} has no ann_file', leaves, 'PackDetInputs',
                                  f'set ann_file to a COCO file of the truth, or {_OWN_TRUTH}', 'instances')
        if evaluator.get('ann_file') is not None and not is_remote(evaluator):
            require_path(name, 'ann_file', str(evaluator['ann_file']), is_file=True,
                         hint='set it to the file that the dataset shows')
            if issubclass(cls, CocoMetric):
                _check_coco_truth(name, Path(evaluator['ann_file']), reports)
                _note_part(name, leaves, reports)


def _require_own_ids(name: str, reports: Sequence[DatasetReport]) -> None:
    """CocoMetric tells images apart by their ids, which must differ between datasets."""
    counts = Counter(record.image_id for report in reports for record in report.records)
    repeated = [image_id for image_id, count in counts.items() if count > 1]
    if repeated and len(reports) > 1:
        raise UserError(f'{name}: {len(repeated):,} image ids are in several of the {len(reports)} datasets (first: '
                        f'{repeated[0]!r}), and CocoMetric cannot tell their images apart; number them apart, or give '
                        'one set here and the others as val_cfg.others')


def _require_in_pipelines(name: str, why: str, leaves: Sequence[Mapping[str, Any]], step_type: str, remedy: str,
                          meta_key: str | None = None) -> None:
    """Each dataset's pipeline must have a step, and this one among its ``meta_keys`` a key."""
    for leaf in leaves:
        steps = [step for step in leaf.get('pipeline') or [] if str(step.get('type')).endswith(step_type)]
        if not any(meta_key is None or meta_key in step.get('meta_keys', ()) for step in steps):
            raise UserError(f'{name}: {why}, and its pipeline '
                            f"{'packs none' if meta_key else f'has no {step_type}'}; {remedy}")


def _note_part(name: str, leaves: Sequence[Mapping[str, Any]], reports: Sequence[DatasetReport]) -> None:
    """Say where a dataset shows a part of the file, by ``indices``, whose other images count as missed."""
    for leaf, report in zip(leaves, reports, strict=True):
        if leaf.get('indices') is not None and not report.note:
            report.more.append(f'{name} measures on all {report.images:,} images of ann_file, and indices of the '
                               f'dataset leaves some out, which count as missed; take ann_file out and {_OWN_TRUTH}')


def _check_coco_truth(name: str, path: Path, reports: Sequence[DatasetReport]) -> None:
    """CocoMetric must read the truth of the images that the datasets show."""
    if any(report.note for report in reports):
        return
    if all(Path(str(report.source)).resolve() == path.resolve() for report in reports):
        return
    try:
        images = load_coco(path, test_mode=True)['images']
    except UserError as error:
        raise UserError(f'{name}: CocoMetric needs a COCO file, and {error}. Or take ann_file out and '
                        f'{_OWN_TRUTH}') from error
    shown = {(record.image_id, Path(record.file_name).name) for report in reports for record in report.records}
    in_file = {(image['id'], Path(image['file_name']).name) for image in images}
    if shown != in_file:
        sources = some([report.source for report in reports])
        raise UserError(f'{name}.ann_file is {path} with {len(in_file):,} images, the dataset shows {len(shown):,} '
                        f'({sources}), {len(shown & in_file):,} of them the same by id and name; set both to the same '
                        f'file, or take ann_file out and {_OWN_TRUTH}')
