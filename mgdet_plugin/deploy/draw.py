"""What a model finds on held-back images, drawn on a sheet."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import is_number, is_whole, require
from mgdet_plugin.common.files import check_destination
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path

MAX_ENLARGE = 8
MAX_COUNT = 100  # pictures of a sheet, which is held in memory


def draw_detections(config: str, checkpoint: str, out: str, count: int = 6, score_thr: float = 0.3,
                    enlarge: int | None = None, truth: bool = False) -> int:
    """Draw what a model finds on the first images of a config's test set.

    Images go through the network one at a time, by the dataset's own pipeline.

    Args:
        config: Path of the config, or its name.
        checkpoint: Path of the weights.
        out: PNG to write, in a folder that is there; replaced in one step.
        count: Images to draw.
        score_thr: Detections of a lower score are left out; the number of others is returned.
        enlarge: Factor on each image's sides. Default: by its size, see :func:`~mgdet_plugin.deploy.sheet.scale_of`.
        truth: Whether the annotated boxes are drawn too, dashed.

    Raises:
        UserError: A number is out of its range, or config, dataset or checkpoint are missing or do not fit.
    """
    require(is_whole(count, 1) and count <= MAX_COUNT,
            f'a sheet has 1 to {MAX_COUNT} images (test.py --show-dir draws all, a file each)', count)
    require(is_number(score_thr) and 0 <= score_thr <= 1, 'the lowest score must be from 0 to 1', score_thr)
    require(enlarge is None or (is_whole(enlarge, 1) and enlarge <= MAX_ENLARGE),
            f'the factor on the images must be a whole number from 1 to {MAX_ENLARGE}', enlarge)
    config = str(config_path(config))
    check_weights_path(checkpoint, config)
    check_destination(Path(out), Path(config), Path(checkpoint))
    from mmdet.registry import DATASETS  # here: what is missing is told without importing torch and mmdet
    from mmengine.config import Config

    from mgdet_plugin.deploy.sheet import Box, class_colours, draw_boxes, read_rgb, scale_of, write_sheet
    from mgdet_plugin.engine.checkpoint_check import read_weights
    from mgdet_plugin.engine.preflight import prepare_test
    prepare_test([config, checkpoint])
    cfg = Config.fromfile(config)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    require(len(dataset), f'the test set of {config} must have images to draw', len(dataset))
    colours, names = class_colours(dataset.metainfo), dataset.metainfo['classes']
    pictures, found = [], 0
    for index, detected in detections(cfg, read_weights(checkpoint, cfg)[0], dataset, count, score_thr):
        info = dataset.get_data_info(index)
        boxes = [Box(each['bbox'], colours[each['bbox_label']], names[each['bbox_label']], dashed=True)
                 for each in info.get('instances', ()) if truth and not each.get('ignore_flag')]
        boxes += [Box(corners, colours[label], f'{names[label]} {score:.2f}') for corners, label, score in detected]
        picture = read_rgb(info['img_path'])
        pictures.append(draw_boxes(picture, boxes, scale_of(picture.size, enlarge)))
        found += len(detected)
    write_sheet(pictures, Path(out))
    return found


def detections(cfg: Any, state: Mapping[str, Any], dataset: Any, count: int,
               score_thr: float) -> Iterator[tuple[int, list[tuple[list[float], int, float]]]]:
    """What a config's model finds on the first images of a dataset, one at a time.

    Args:
        cfg: The config.
        state: Weights, all of the model's.
        dataset: Its samples are those of a test pipeline.
        count: Images.
        score_thr: Lowest score.

    Yields:
        Index of an image; corners in its pixels, label and score of what is found on it, best last.
    """
    import torch
    from mmdet.registry import MODELS
    from mmengine.dataset import pseudo_collate
    model = MODELS.build(cfg.model)
    model.load_state_dict(state, strict=True)
    model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    for index in range(min(count, len(dataset))):
        with torch.inference_mode():
            [sample] = model.test_step(pseudo_collate([dataset[index]]))
        found = sample.pred_instances[sample.pred_instances.scores >= score_thr]
        found = found[found.scores.argsort()].cpu()
        yield index, list(zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist()))
