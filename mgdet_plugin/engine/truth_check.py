"""Whether boxes and truth will meet in one space in loops that are mmdet's own, told before anything is built."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv.transforms import LoadAnnotations, Resize
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import Letterbox, iter_dataset_cfgs
from mgdet_plugin.models import MultiGridHead
from mgdet_plugin.models.maths.letterbox import letterbox_geometry


def check_truth(cfg: Config, splits: Sequence[str]) -> Iterator[str]:
    """Lines a person should know of the sets that are predicted on, of the default scope.

    Args:
        cfg: The whole config.
        splits: Which are used; 'train' is not looked at.

    Raises:
        UserError: The head would leave boxes shifted by the letterbox's border, or a metric of mmdet would hold them
            against true boxes in another space.
    """
    for split in splits:
        for leaf in iter_dataset_cfgs((cfg.get(f'{split}_dataloader') or {}).get('dataset')):
            if split != 'train':
                yield from _check_set(cfg, split, leaf, [TRANSFORMS.build(step) for step in leaf.get('pipeline') or []])


def _check_set(cfg: Config, split: str, leaf: Mapping[str, Any], steps: Sequence[Any]) -> Iterator[str]:
    letterbox = next((step for step in steps if isinstance(step, Letterbox)), None)
    if letterbox is not None:
        _check_head(cfg, split, leaf, letterbox)
    if split == 'val' and (cfg.get('val_cfg') or {}).get('type') == 'LossValLoop':
        return  # which finds it out
    kinds = [kind for step in steps for kind in (LoadAnnotations, Resize) if isinstance(step, kind)]
    if kinds[:2] != [LoadAnnotations, Resize]:
        return
    said = (f'the {split} pipeline loads boxes before it resizes the picture, so true boxes are in pixels of the '
            'input; put LoadAnnotations after Resize and Pad, as mmdet does')
    evaluator = cfg.get(f'{split}_evaluator') or {}
    metrics = [each.get('type') for each in ([evaluator] if isinstance(evaluator, Mapping) else evaluator)]
    if not all(issubclass(METRICS.get(str(metric)) or object, CocoMetric) for metric in metrics):  # reads its own file
        raise UserError(f'{said} ({", ".join(map(str, metrics))} would hold detections in pixels of the picture '
                        'against them)')
    yield f'{said} (pictures that are drawn show them out of place)'


def _check_head(cfg: Config, split: str, leaf: Mapping[str, Any], letterbox: Letterbox) -> None:
    head = MODELS.get(str((cfg.model.get('bbox_head') or {}).get('type')))
    if isinstance(head, type) and issubclass(head, MultiGridHead):
        return
    dataset = DATASETS.build(leaf)
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        width, height = info.get('width'), info.get('height')
        if width and height and letterbox_geometry((width, height), letterbox.scale)[2:] != letterbox.scale:
            raise UserError(f'{cfg.model.type} cannot take boxes out of a letterbox, only MultiGridHead can, and '
                            f'{info.get("img_path")} of the {split} set ({width}x{height}) gets a border; put '
                            "dict(type='Resize', scale=..., keep_ratio=True) and dict(type='Pad', size_divisor=32) in "
                            'place of the Letterbox')
