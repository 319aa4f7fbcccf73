"""A small clean data set as COCO files, and what can be done to it."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 96
NAMES = ('disc', 'square')


@dataclass
class FaultySet:
    """COCO files of splits that can still be changed, with their pictures in ``folder / split``."""

    folder: Path
    splits: dict[str, dict[str, Any]]

    def write(self) -> Path:
        """Write the annotations; the folder."""
        for split, content in self.splits.items():
            (self.folder / f'{split}.json').write_text(json.dumps(content))
        return self.folder

    def box(self, bbox: list[float], split: str = 'train', image: int = 0, label: int = 0) -> None:
        """Add a box [x, y, width, height]."""
        annotations = self.splits[split]['annotations']
        annotations.append(dict(id=1000 + len(annotations), image_id=image, category_id=label, bbox=bbox,
                                area=max(1.0, bbox[2] * bbox[3]), iscrowd=0))

    def path(self, split: str, image: int) -> Path:
        """A picture."""
        return self.folder / split / f'{image}.png'

    def picture(self, name: str, pixels: np.ndarray, split: str = 'train', **options: Any) -> Path:
        """Add a picture without boxes, of the id 100 or more; its path."""
        images = self.splits[split]['images']
        images.append(dict(id=100 + len(images), file_name=f'{split}/{name}', width=pixels.shape[1],
                           height=pixels.shape[0]))
        Image.fromarray(pixels).save(self.folder / split / name, **options)
        self.box([10, 10, 14, 20], split, images[-1]['id'])
        return self.folder / split / name


def noise(height: int = SIDE, width: int = SIDE, seed: int = 99) -> np.ndarray:
    """Pixels (h, w, 3) unlike any others of another seed."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def make_clean_set(folder: Path, count: int = 8) -> FaultySet:
    """Noise with two boxes a picture, far apart; train and val."""
    splits: dict[str, dict[str, Any]] = {}
    for place, split in enumerate(('train', 'val')):
        (folder / split).mkdir(parents=True)
        annotations = []
        for image in range(count):
            Image.fromarray(noise(seed=100 * place + image)).save(folder / split / f'{image}.png')
            for label, x in enumerate((8, 60)):
                annotations.append(dict(id=len(annotations), image_id=image, category_id=label,
                                        bbox=[x + image, 30, 14, 22], area=308, iscrowd=0))
        splits[split] = dict(
            images=[dict(id=each, file_name=f'{split}/{each}.png', width=SIDE, height=SIDE) for each in range(count)],
            categories=[dict(id=each, name=name) for each, name in enumerate(NAMES)], annotations=annotations)
    return FaultySet(folder, splits)


Plant = Callable[[FaultySet], object]
