"""A sheet of detections on held-back images."""
from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together

_COLUMNS = 3
_SPACE = 4  # pixels between images


def draw_detections(config: str, checkpoint: str, out: str, count: int = 6, score_thr: float = 0.3,
                    enlarge: int = 2) -> int:
    """Draw what a model finds on the first images of a config's test set.

    Args:
        config: Path of the config.
        checkpoint: Path of the weights.
        out: PNG to write, replaced in one step.
        count: Images to draw.
        score_thr: Detections of a lower score are left out; the number of others is returned.
        enlarge: Factor on each image's sides, for small images.

    Raises:
        UserError: If the config or the checkpoint is missing or the test set is empty.
    """
    for path in (config, checkpoint):
        if not os.path.isfile(path):
            raise UserError(f'{path} is not there; give a config and a checkpoint that training wrote')
    from mmdet.apis import DetInferencer  # here: what is missing is told without importing torch and mmdet
    from mmdet.registry import DATASETS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mgdet_plugin.datasets import ensure_embedded_data
    cfg = Config.fromfile(config)
    ensure_embedded_data(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    paths = [dataset.get_data_info(index)['img_path'] for index in range(min(count, len(dataset)))]
    if not paths:
        raise UserError(f'the test set of {config} is empty; there is nothing to draw')
    images = [_read(path, enlarge) for path in paths]
    inferencer = DetInferencer(model=config, weights=checkpoint, device='cpu', show_progress=False)
    found = inferencer(images, return_vis=True, pred_score_thr=score_thr,
                       no_save_vis=True, batch_size=len(images))
    _write_sheet(found['visualization'], Path(out))
    return sum(score >= score_thr for each in found['predictions'] for score in each['scores'])


def _read(path: str, enlarge: int) -> np.ndarray:
    """An image enlarged, (H, W, 3) BGR as mmdet reads images."""
    with Image.open(path) as image:
        size = (image.width * enlarge, image.height * enlarge)
        return np.asarray(image.convert('RGB').resize(size, Image.Resampling.BICUBIC))[..., ::-1]


def _write_sheet(images: list[np.ndarray], out: Path) -> None:
    """Place RGB images (H, W, 3) in rows of three and write the sheet."""
    height, width = (max(image.shape[axis] for image in images) + _SPACE for axis in (0, 1))
    rows = -(-len(images) // _COLUMNS)
    sheet = Image.new('RGB', (width * min(_COLUMNS, len(images)) - _SPACE, height * rows - _SPACE), 'white')
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (index % _COLUMNS * width, index // _COLUMNS * height))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_together({out: partial(sheet.save, format='PNG', optimize=True)})
