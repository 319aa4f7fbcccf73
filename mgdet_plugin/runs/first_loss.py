"""The validation loss a run starts from, and what the kept prediction rows are worth in it.

Shapes: D = 5 + A + C channels of a prediction map, K channels of its bridge.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data
from mgdet_plugin.engine.checkpoint_check import check_fit, read_weights
from mgdet_plugin.weights.mapping.classes import ROW_STD, SEED
from mgdet_plugin.weights.mapping.fit import BOX_ROWS

AS_GIVEN = 'as given'
RANDOM_CLASSES = 'class rows random'
RANDOM_ROWS = 'all prediction rows random'


def first_losses(config: str, checkpoint: str, cfg_options: Mapping[str, Any] | None = None) -> dict[str, dict]:
    """Every term of the validation loss of a checkpoint, of it with random class rows, and with all rows random.

    Random rows are drawn as an import draws them: N(0, 0.01), zero bias. Balanced class weights are left out: they
    belong to training and weigh the three alike.

    Args:
        config: Path of a config; its validation set is used as it is validated on.
        checkpoint: Path of the weights.
        cfg_options: Dotted keys of the config to set.

    Returns:
        ``as given``, ``class rows random``, ``all prediction rows random`` -> term -> loss per image; ``loss`` is
        their sum.

    Raises:
        UserError: Config, dataset or weights are missing or do not fit.
    """
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(cfg_options or {}))
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ensure_embedded_data(cfg)
    check_datasets(cfg, ('val',))
    state = dict(read_weights(checkpoint, cfg)[0])
    if 'loss' in cfg.model.get('bbox_head', {}):
        cfg.model.bbox_head.loss.class_weights = None
    model = MODELS.build(cfg.model)
    check_fit(checkpoint, state, model.state_dict(), cfg)
    anchors = [len(scale) for scale in cfg.model.bbox_head.anchors]
    batches = Runner.build_dataloader(cfg.val_dataloader, seed=0)
    states = {AS_GIVEN: state, RANDOM_CLASSES: random_rows(state, [BOX_ROWS + count for count in anchors]),
              RANDOM_ROWS: random_rows(state, [0] * len(anchors))}
    losses = {}
    for name, weights in states.items():
        model.load_state_dict(weights, strict=True)
        losses[name] = validation_loss(model, batches)
    return losses


def random_rows(state: Mapping[str, Tensor], kept: Iterable[int]) -> dict[str, Tensor]:
    """A state dict whose prediction convolutions have rows drawn anew.

    Args:
        state: The state dict; prediction weights (D, K, 1, 1), biases (D,).
        kept: First rows that stay, for each prediction convolution.
    """
    generator = torch.Generator().manual_seed(SEED)
    changed = dict(state)
    for index, rows in enumerate(kept):
        for name in ('weight', 'bias'):
            key = f'bbox_head.predict_convs.{index}.{name}'
            tensor = state[key].clone()
            tensor[rows:] = torch.randn(tensor[rows:].shape, generator=generator) * ROW_STD if name == 'weight' else 0
            changed[key] = tensor
    return changed


@torch.no_grad()
def validation_loss(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Mean of every loss term over the images of a dataset, the model in evaluation mode.

    Args:
        model: A detector of mmdet.
        batches: What its data preprocessor takes, with boxes.

    Raises:
        UserError: There are no images.
    """
    model.eval()
    sums: defaultdict[str, float] = defaultdict(float)
    images = 0
    for batch in batches:
        data = model.data_preprocessor(batch, False)  # type: ignore[operator]
        count = len(data['data_samples'])
        terms = model(**data, mode='loss')
        for name, value in terms.items():
            if 'loss' in name:
                sums[name] += float(sum(value) if isinstance(value, (list, tuple)) else value) * count
        images += count
    if not images:
        raise UserError('the validation set has no images; there is no loss to measure')
    means = {name: total / images for name, total in sums.items()}
    return {**means, 'loss': sum(means.values())}
