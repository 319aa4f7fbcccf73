"""What a worker gives a second: the training pipeline with mosaic and mixup beside mmdet's stock one, that of YOLOX.

Both run on the same pictures at the same size, every sample mixed, in one process on one thread. Counted are seconds of
the processor: a worker computes and does little else.
"""
from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope

from benchmarks.training.steps import row
from mgdet_plugin.datasets import StagedDataset
from mgdet_plugin.weights.mapping.network import load_config

PICTURES, SIZE, BOXES = 32, (640, 480), 8  # COCO's commonest size and its mean of boxes
MIXED = dict(mosaic=1.0, mixup=1.0)


def pipeline_rows(samples: int = 16, repeats: int = 5) -> list[dict[str, Any]]:
    """Seconds of the processor for an image of each pipeline, and those of the parts that neither can do without.

    Args:
        samples: Of each pipeline a turn.
        repeats: Turns after one that is not counted.

    Returns:
        A row against mmdet's pipeline with mosaic and mixup; one of ours without any, and one of five decoded files,
        each against the same peer; and one of ours against the steps of mmdet that make the same pixels.
    """
    init_default_scope('mmdet')
    threads = cv2.getNumThreads()  # torch's own are told by OMP_NUM_THREADS
    cv2.setNumThreads(1)
    try:
        with TemporaryDirectory() as folder:
            files = write_pictures(Path(folder))
            sides = dict(ours=our_dataset(Path(folder), MIXED), peer=stock_dataset(Path(folder)),
                         plain=our_dataset(Path(folder), dict.fromkeys(MIXED, 0.0)), decoding=Decoded(files),
                         same=StagedDataset(leaf(Path(folder), stock_steps(our_pipeline())), stage_probs=[MIXED]))
            seconds = processor_in_turns(sides, samples, repeats)
    finally:
        cv2.setNumThreads(threads)
    peer = f"mmdet's pipeline of YOLOX, mosaic and mixup always, an image of {our_side()} pixels"
    rows = [row(f'pipeline_{name}', f'{peer}; {what}', 's', seconds[side], seconds['peer'])
            for name, side, what in (('mixed', 'ours', 'ours with both'), ('plain', 'plain', 'ours with neither'),
                                     ('decoding', 'decoding', 'five files decoded and no more'))]
    return [*rows, row('pipeline_same_pixels', "mmdet's own steps for the same samples, pixels within rounding", 's',
                       seconds['ours'], seconds['same'])]


def processor_in_turns(sides: Mapping[str, Any], samples: int, repeats: int) -> dict[str, float]:
    """Median seconds of the processor for an image of each dataset, taken in turns, the first turn not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, dataset in sides.items():
            start = time.process_time()
            for index in range(samples):
                dataset[(turn * samples + index) % len(dataset)]
            times[name].append((time.process_time() - start) / samples)
    return {name: median(each[1:]) for name, each in times.items()}


class Decoded:
    """Five files decoded for an index: what a mosaic and the partner of a mixup take at least."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[np.ndarray | None]:
        return [cv2.imread(self.files[(index + shift) % len(self)]) for shift in range(5)]


def write_pictures(folder: Path) -> list[str]:
    """Pictures of soft colours under some noise, as JPEG, and their annotations as COCO's; the files."""
    draw, (width, height), files = np.random.default_rng(0), SIZE, []
    coco: dict[str, Any] = dict(images=[], annotations=[], categories=[dict(id=1, name='thing')])
    for number in range(PICTURES):
        soft = cv2.resize(draw.integers(0, 256, (24, 32, 3), np.uint8), SIZE, interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(soft + draw.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)
        files.append(str(folder / f'{number}.jpg'))
        cv2.imwrite(files[-1], noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
        coco['images'].append(dict(id=number, file_name=f'{number}.jpg', width=width, height=height))
        for _ in range(BOXES):
            w, h = (int(each) for each in draw.integers(20, 200, 2))
            coco['annotations'].append(dict(id=len(coco['annotations']), image_id=number, category_id=1, iscrowd=0,
                                            area=w * h, bbox=[int(draw.integers(0, width - w)),
                                                              int(draw.integers(0, height - h)), w, h]))
    (folder / 'pictures.json').write_text(json.dumps(coco))
    return files


def our_side() -> int:
    """Pixels of the default config's side."""
    return int(load_config(None).img_scale[0])


def leaf(folder: Path, pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Config of a dataset of the written pictures."""
    return dict(type='CocoDataset', data_root=str(folder), ann_file='pictures.json', data_prefix=dict(img=''),
                metainfo=dict(classes=('thing',)), pipeline=list(pipeline))


def our_dataset(folder: Path, probs: Mapping[str, float]) -> StagedDataset:
    """The written pictures through the default config's training pipeline."""
    return StagedDataset(leaf(folder, our_pipeline()), stage_probs=[probs])


def our_pipeline() -> list[dict[str, Any]]:
    """The default config's steps."""
    return [dict(step) for step in load_config(None).train_dataloader.dataset.pipeline]


def stock_steps(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline with mmdet's own steps in place of ours for bytes and cut mosaics, and Pillow's exact letterbox."""
    steps = []
    for step in map(dict, pipeline):
        if step['type'] == 'StagedMix':
            step['transforms'] = stock_steps(step['transforms'])
        elif step['type'] == 'ByteMixUp':
            step['type'] = 'MixUp'
        elif step['type'] == 'Letterbox':
            step['exact'] = True
        steps.append(step)
        if step['type'] == 'CutMosaic':
            step['type'], (width, height) = 'Mosaic', step['img_scale']
            steps.append(dict(type='RandomAffine', max_rotate_degree=0.0, max_translate_ratio=0.0,
                              scaling_ratio_range=(1.0, 1.0), max_shear_degree=0.0,
                              border=(-width // 2, -height // 2), border_val=(step['pad_val'], ) * 3))
    return steps


def stock_dataset(folder: Path) -> Any:
    """The same pictures through mmdet's pipeline of YOLOX (``configs/yolox/yolox_s_8xb8-300e_coco.py``)."""
    scale = (our_side(),) * 2
    steps: list[dict[str, Any]] = [
        dict(type='Mosaic', img_scale=scale, pad_val=114.0),
        dict(type='RandomAffine', scaling_ratio_range=(0.1, 2), border=(-scale[0] // 2, -scale[1] // 2)),
        dict(type='MixUp', img_scale=scale, ratio_range=(0.8, 1.6), pad_val=114.0),
        dict(type='YOLOXHSVRandomAug'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
        dict(type='PackDetInputs')]
    load: list[dict[str, Any]] = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    return DATASETS.build(dict(type='MultiImageMixDataset', dataset=leaf(folder, load), pipeline=steps))
