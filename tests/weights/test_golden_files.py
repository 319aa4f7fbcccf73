"""Full-size files as Keras wrote them give, in the real model, the outputs Keras computes."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.conversion import convert
from mgdet_plugin.weights.mapping.architecture import Part
from mgdet_plugin.weights.mapping.layout import resolve_layers
from mgdet_plugin.weights.mapping.network import build_empty, load_config
from tests.support.keras_files import BACKBONE_TREES, DATA, MODEL_TREES, numbers, tree, write

TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def model() -> nn.Module:
    """The model of the default config; its parameters are assigned from each checkpoint."""
    return build_empty(load_config(None)).eval()


@pytest.fixture(scope='module')
def recorded() -> dict[str, np.ndarray]:
    """What Keras computed from the same numbers; see ``slice_golden.py``."""
    with np.load(DATA / 'outputs_416.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def image() -> Tensor:
    """(1, 3, 416, 416), the input of the recorded outputs."""
    pixels = np.random.RandomState(7).rand(1, 416, 416, 3).astype(np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope='module')
def first_state() -> Iterator[dict[str, Tensor]]:
    """Filled by the first model file, compared by the others."""
    yield {}
    numbers.cache_clear()


def imported(name: str, folder: Path, part: Part) -> dict[str, Tensor]:
    """State dict of a full-size file, which is removed again."""
    src = write(tree(name), folder / name)
    with open_weights(src) as weights:
        state, _ = convert(weights, resolve_layers(weights), part, load_config(None))
    src.unlink()
    return state


def assert_recorded(maps: Sequence[Tensor], recorded: Mapping[str, np.ndarray], steps: Mapping[str, int]) -> None:
    """Hold maps (1, channels, H, W) against the recorded cells, of which every ``step``-th was kept."""
    for output, (key, step) in zip(maps, steps.items(), strict=True):
        height, width = recorded[key].shape[:2]
        got = output[0].permute(1, 2, 0)[::step, ::step][:height, :width]  # (h, w, channels)
        assert np.abs(got.numpy() - recorded[key]).max() < TOLERANCE


@pytest.mark.parametrize('name', MODEL_TREES)
@torch.no_grad()
def test_model_files_give_the_outputs_of_keras(tmp_path, name, model, recorded, image, first_state):
    state = imported(name, tmp_path, 'model')
    if first_state and name != MODEL_TREES[-1]:  # bit-equal weights need no second forward
        assert state.keys() == first_state.keys()
        assert [key for key in state if not torch.equal(state[key], first_state[key])] == []
        return
    first_state.update(state)
    model.load_state_dict(state, strict=True, assign=True)
    maps = model.bbox_head(model.extract_feat(image))
    assert_recorded(maps, recorded, dict(map_32=1, map_16=2, map_8=4))


@pytest.mark.parametrize('name', BACKBONE_TREES)
@torch.no_grad()
def test_backbone_files_give_the_outputs_of_keras(tmp_path, name, model, recorded, image):
    state = imported(name, tmp_path, 'backbone')
    weights = {key.removeprefix('backbone.'): value for key, value in state.items()}
    model.backbone.load_state_dict(weights, strict=True, assign=True)
    assert_recorded(model.backbone(image), recorded, dict(backbone_8=1, backbone_16=1, backbone_32=1))
