"""Checkpoints for tests of the export and of verification, made of the numbers of the files in ``keras_files``."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from mgdet_plugin.weights.mapping.architecture import Part, block_prefixes, predict_prefixes
from tests.support.keras_files import NORM_KINDS, numbers, tiny

TORCH_NAMES = ('weight', 'bias', 'running_mean', 'running_var')


def tiny_state(part: Part = 'model') -> dict[str, Tensor]:
    """State dict of the small model, without the importer: what every tiny tree holds."""
    shapes = {(spec['layer'], spec['kind']): tuple(spec['shape'])
              for spec in tiny('keras2_model5_legacy.h5')['datasets'].values()}

    def tensor(layer: str, kind: str) -> Tensor:
        values = numbers(layer, kind, shapes[layer, kind])
        if kind == 'kernel':
            values = np.ascontiguousarray(np.moveaxis(values, (3, 2), (0, 1)))
        return torch.from_numpy(values)

    state: dict[str, Tensor] = {}
    for index, prefix in enumerate(block_prefixes(part)):
        suffix = f'_{index}' if index else ''
        state[f'{prefix}.conv.weight'] = tensor(f'conv2d{suffix}', 'kernel')
        for name, kind in zip(TORCH_NAMES, NORM_KINDS, strict=True):
            state[f'{prefix}.bn.{name}'] = tensor(f'batch_normalization{suffix}', kind)
        state[f'{prefix}.bn.num_batches_tracked'] = torch.tensor(0)
    for index, prefix in enumerate(predict_prefixes(part), 1):
        state[f'{prefix}.weight'] = tensor(f'predict_conv_{index}', 'kernel')
        state[f'{prefix}.bias'] = tensor(f'predict_conv_{index}', 'bias')
    return {key: value.clone() for key, value in state.items()}


def save(state: dict[str, Tensor], path: Path, **other: Any) -> Path:
    """Write a checkpoint; ``other`` entries such as ``meta`` lie beside the weights."""
    torch.save(dict(state_dict=state, **other), path)
    return path


def listing(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Groups with their attributes as (type, value), and arrays, of an HDF5 file."""
    groups: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            groups[name] = {key: (str(item.attrs.get_id(key).dtype), np.asarray(value).tolist())
                            for key, value in item.attrs.items()}
        else:
            assert not item.attrs and item.chunks is None
            arrays[name] = item[()]

    with h5py.File(path) as file:
        visit('/', file)
        file.visititems(visit)
    return groups, arrays
