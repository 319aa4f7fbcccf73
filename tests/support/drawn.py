"""Small drawn sets for the staged datasets: one solid rectangle an image, each in a colour of its own."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image

GREY = 128


def colour(image: int) -> tuple[int, int, int]:
    """RGB of an image's rectangle, darker than the grey of canvas and ground, so that the mean of two is so too."""
    levels = (0, 40, 80)
    return levels[image % 3], levels[image // 3 % 3], levels[image // 9 % 3]


def draw_set(root: Path, count: int, size: tuple[int, int] = (32, 32), empty: Sequence[int] = (),
             overhang: int = 0) -> dict[str, Any]:
    """A COCO set of images named ``0.png``, ``1.png``, ... with a rectangle each; its dataset config, no pipeline.

    Args:
        root: the folder to write.
        count: images, at most 27, or colours repeat.
        size: (w, h), pixels.
        empty: images without a box.
        overhang: pixels by which each box reaches over the right and the lower edge of its image; 0 for inside.
    """
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    annotations = []
    for image in range(count):
        pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
        if image not in empty:
            w, h = (int(rng.integers(side // 3, side * 3 // 4)) for side in size)
            x, y = (side - part if overhang else int(rng.integers(0, side - part)) for side, part in zip(size, (w, h)))
            pixels[y:y + h, x:x + w] = colour(image)
            box = [x, y, w + overhang, h + overhang]
            annotations.append(dict(id=image, image_id=image, category_id=1 + image % 3, bbox=box, iscrowd=0,
                                    area=box[2] * box[3]))
        Image.fromarray(pixels).save(root / f'{image}.png')
    (root / 'ann.json').write_text(json.dumps(dict(
        images=[dict(id=i, file_name=f'{i}.png', width=size[0], height=size[1]) for i in range(count)],
        annotations=annotations, categories=[dict(id=i, name=name) for i, name in enumerate('abc', 1)])))
    return dict(type='CocoDataset', data_root=str(root), ann_file='ann.json', data_prefix=dict(img=''),
                metainfo=dict(classes=tuple('abc')))


def load_steps() -> list[dict[str, Any]]:
    """Image and boxes."""
    return [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]


def mosaic(side: int = 32, cut: bool = True, **fields: Any) -> dict[str, Any]:
    """The mosaic step of the configs; not cut: that of configs before there was CutMosaic."""
    kind = dict(img_scale=(side, side), center_ratio_range=(0.2, 0.8), pad_val=float(GREY))
    steps = [dict(type='CutMosaic', **kind)] if cut else [
        dict(type='Mosaic', **kind),
        dict(type='RandomAffine', max_rotate_degree=0.0, max_translate_ratio=0.0, scaling_ratio_range=(1.0, 1.0),
             max_shear_degree=0.0, border=(-side // 2, -side // 2), border_val=(GREY, GREY, GREY))]
    return dict(type='StagedMix', name='mosaic', **fields, transforms=steps)


def mixup(side: int = 32, ratio_range: tuple[float, float] = (0.8, 1.25), **fields: Any) -> dict[str, Any]:
    """The mixup step of the configs."""
    return dict(type='StagedMix', name='mixup', **fields, transforms=[
        dict(type='MixUp', img_scale=(side, side), ratio_range=ratio_range, flip_ratio=1.0, pad_val=float(GREY))])


def pack_step() -> dict[str, Any]:
    """The last step, with what the tests look at."""
    return dict(type='PackDetInputs', meta_keys=('img_id', 'augmented', 'flip'))


def full_pipeline(side: int = 32) -> list[dict[str, Any]]:
    """All that is random in the configs' pipelines, with both mixes and a step that uses torch's generator."""
    return [*load_steps(), mosaic(side), dict(type='PhotoMetricDistortion'), dict(type='Letterbox', scale=(side, side)),
            dict(type='RandomAffine', border_val=(GREY, GREY, GREY)), dict(type='RandomFlip', prob=0.5),
            TorchNoise(), mixup(side), pack_step()]


class TorchNoise(BaseTransform):
    """Adds noise from torch's generator."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        noise = torch.randint(0, 5, results['img'].shape, dtype=torch.uint8).numpy()
        results['img'] = np.maximum(results['img'], noise)
        return results


class CountLoads(BaseTransform):
    """Notes the images that come by, in ``seen``."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(results['img_id'])
        return results


class DropWhere(BaseTransform):
    """Gives None for the images that a rule names."""

    def __init__(self, rule: Callable[[int], bool]) -> None:
        self.rule = rule

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        return None if self.rule(results['img_id']) else results
