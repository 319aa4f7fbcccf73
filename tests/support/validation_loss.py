"""The validation loss computed another way: batch by batch with the model's own loss, without meter or evaluator."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def validation_loss(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """Mean of every loss term over the images of a dataset, the model in evaluation mode; and their sum, ``loss``."""
    model.eval()
    sums: defaultdict[str, float] = defaultdict(float)
    images = 0
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        count = len(data['data_samples'])
        for name, value in model(**data, mode='loss').items():
            if 'loss' in name:
                sums[name] += float(sum(value) if isinstance(value, (list, tuple)) else value) * count
        images += count
    means = {name: total / images for name, total in sums.items()}
    return {**means, 'loss': sum(means.values())}
