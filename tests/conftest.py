"""What several test modules share.

Nothing heavy is imported here but by who asks for it: pytest's first process, which hands out the tests, has no use for
it and would keep the others waiting.
"""
from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mgdet_plugin  # noqa: F401  before mmdet
from mgdet_plugin.common.interruption import SIGNALS

if TYPE_CHECKING:
    import numpy as np
    from mmengine.structures import InstanceData
    from torch import Tensor

    from mgdet_plugin.models import MultiGridHead

DATA = Path(__file__).parent / 'data'
ROOT = Path(__file__).parents[1]
ANCHORS = [[(112, 74), (149, 190), (370, 328)], [(28, 17), (56, 112), (57, 35)], [(9, 10), (13, 28), (28, 55)]]
STRIDES = (32, 16, 8)
SIZES_320 = [(10, 10), (20, 20), (40, 40)]
HANDLERS = {number: signal.getsignal(number) for number in SIGNALS}


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command that is called in this process ignores signals at its end, and processes inherit that."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture
def make_head() -> Callable[..., MultiGridHead]:
    """A head with model5's anchors; keywords set its fields, ``loss`` those of its loss."""
    from mgdet_plugin.models import MultiGridHead

    def make(num_classes: int = 20, loss: dict[str, Any] | None = None, **fields: Any) -> MultiGridHead:
        return MultiGridHead(
            num_classes=num_classes, in_channels=(8, 8, 8), anchors=ANCHORS, strides=STRIDES,
            bridge_channels=(8, 8, 8), loss=dict(type='MultiGridLoss', **(loss or {})), **fields)

    return make


@pytest.fixture(scope='session')
def golden() -> dict[str, np.ndarray]:
    """Numbers the reference computed at 320 pixels, see ``reduce_golden_320.py``."""
    import numpy as np
    with np.load(DATA / 'golden_320.npz') as file:
        return dict(file)


@pytest.fixture(scope='session')
def golden_losses() -> dict[str, Any]:
    """Loss totals of the reference."""
    return json.loads((DATA / 'golden_loss_320.json').read_text())


@pytest.fixture(scope='session')
def golden_maps(golden: dict[str, np.ndarray]) -> list[Tensor]:
    """The reference's raw maps (5, 28, H, W), coarse to fine."""
    import torch
    return [torch.from_numpy(golden[f'pred_{stride}']).permute(0, 3, 1, 2).contiguous() for stride in STRIDES]


@pytest.fixture(scope='session')
def golden_objects(golden: dict[str, np.ndarray]) -> list[InstanceData]:
    """The objects of the reference's five images: 1, 12, 40, 4 and none."""
    return [objects(boxes[:count, :4].tolist(), boxes[:count, 4].tolist())
            for boxes, count in zip(golden['boxes'], golden['num_boxes'])]


def objects(boxes: list, labels: list) -> InstanceData:
    """Ground truth of one image from lists."""
    import torch
    from mmengine.structures import InstanceData
    return InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                        labels=torch.tensor(labels).reshape(-1).long())
