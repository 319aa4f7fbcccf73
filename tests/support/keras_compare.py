"""Import a file that Keras wrote and compare it with what Keras held and computed; see ``keras_versions.py``."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.mapping.architecture import block_prefixes, predict_prefixes
from mgdet_plugin.weights.mapping.network import load_config
from tests.support.keras_files import TINY_OPTIONS
from tests.support.keras_versions import fixed_image

NORM_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')


@cache
def tiny_model() -> Any:
    """The tiny model, to be loaded."""
    init_default_scope('mmdet')
    return MODELS.build(load_config(None, TINY_OPTIONS).model).eval()


def expected_state(arrays: Mapping[str, np.ndarray], part: Any) -> dict[str, np.ndarray]:
    """State dict, but for the counters of batches, that the recorded weights must become."""
    state: dict[str, np.ndarray] = {}
    for index, prefix in enumerate(block_prefixes(part)):
        state[f'{prefix}.conv.weight'] = arrays[f'conv2d/{index}/0'].transpose(3, 2, 0, 1)
        state |= {f'{prefix}.bn.{tensor}': arrays[f'batch_normalization/{index}/{place}']
                  for place, tensor in enumerate(NORM_TENSORS)}
    for index, prefix in enumerate(predict_prefixes(part)):
        state[f'{prefix}.weight'] = arrays[f'predict_conv/{index}/0'].transpose(3, 2, 0, 1)
        state[f'{prefix}.bias'] = arrays[f'predict_conv/{index}/1']
    return state


@torch.no_grad()
def outputs_of(state: Mapping[str, Tensor], part: str) -> list[np.ndarray]:
    """Maps our model computes from an imported state dict, (1, h, w, channels)."""
    model = tiny_model()
    image = torch.from_numpy(fixed_image()).permute(0, 3, 1, 2)
    if part == 'backbone':
        model.backbone.load_state_dict({key.removeprefix('backbone.'): value for key, value in state.items()})
        maps = model.backbone(image)
    else:
        model.load_state_dict(state)
        maps = model.bbox_head(model.extract_feat(image))
    return [output.permute(0, 2, 3, 1).numpy() for output in maps]


def compare_file(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Import one file of a manifest.

    Returns:
        ``refused``: the line with which the import was refused, and nothing else. Or ``tensors``: how many were
        compared; ``equal``: whether bit for bit; ``error``: of the outputs, absolute;
        ``report``: of the import.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / 'out.pth'
        try:
            report = import_keras(folder / entry['file'], out, part=entry['part'], cfg_options=TINY_OPTIONS)
        except UserError as error:
            return dict(refused=str(error))
        state = torch.load(out)['state_dict']
    with np.load(folder / entry['reference']) as arrays:
        expected = expected_state(arrays, entry['part'])
        maps = [arrays[f'map/{index}'] for index in range(3)]
    loaded = {key: value.numpy() for key, value in state.items() if not key.endswith('num_batches_tracked')}
    equal = loaded.keys() == expected.keys() and all(
        value.dtype == np.float32 and value.tobytes() == expected[key].tobytes() for key, value in loaded.items())
    errors = [float(np.abs(got - kept).max()) for got, kept in zip(outputs_of(state, entry['part']), maps, strict=True)]
    return dict(tensors=len(loaded), equal=equal, error=max(errors), report=report)
