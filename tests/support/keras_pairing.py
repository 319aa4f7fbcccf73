"""Which array of a Keras file belongs to which tensor, told without the importer.

The importer resolves a file by stored order, names and shapes together. Here a layer's own name alone decides: the
number in ``conv2d_55`` less the smallest number of its kind is the layer's place in order of creation. So a fault in
one of the two ways shows as a difference. A file without names leaves only the order.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.stored_array import StoredArray
from mgdet_plugin.weights.container.weights_file import WeightsFile

# Places of the 66 convolutions in model.layers order, by which files without names count: bridges come last.
TOPOLOGICAL = (*range(55), 56, 57, 58, 59, 61, 62, 63, 64, 55, 60, 65)
NORM_WEIGHTS = ('gamma', 'beta', 'moving_mean', 'moving_variance')
WEIGHTS = ('kernel', 'bias', *NORM_WEIGHTS)
NOT_LAYERS = ('/optimizer/', '/optimizer_weights/')
HEAD_MODULES = ('neck.blocks', 'bbox_head.bridges', 'neck.up_convs')  # as created on every scale


@dataclass(frozen=True)
class NamedLayer:
    """A layer of the file: its group, its own name (None where it is not stored), weight name -> array."""

    place: str
    name: str | None
    arrays: dict[str, StoredArray]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of its arrays in Keras' order."""
        return tuple(len(self.arrays[weight].shape) for weight in WEIGHTS if weight in self.arrays)


def paired_arrays(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Key of each tensor of a state dict that Keras knows -> float32 array in torch's layout."""
    with open_weights(path) as weights:
        layers = list(file_layers(weights))
        convs, norms, heads = ([layer for layer in layers if layer.ranks == ranks]
                               for ranks in ((4,), (1, 1, 1, 1), (4, 1)))
        named = all(layer.name is not None for layer in (*convs, *norms, *heads))
        chosen = pair(keys, *(in_order(kind, named) for kind in (convs, norms, heads)))
        values = {key: weights.read(array.path, array.shape) for key, array in chosen.items()}
    return {key: value.transpose(3, 2, 0, 1) if value.ndim == 4 else value for key, value in values.items()}


def file_layers(weights: WeightsFile) -> Iterator[NamedLayer]:
    """All groups of the file that hold weights of a layer."""
    groups: dict[str, dict[str, StoredArray]] = defaultdict(dict)
    for path, array in weights.arrays.items():
        place, _, weight = path.rpartition('/')
        if not path.startswith(NOT_LAYERS):
            groups[place][weight.split(':')[0]] = array
    for place, arrays in groups.items():
        if place.endswith('/vars') and all(index.isdigit() for index in arrays):
            names = weights.texts(place, 'name')
            kinds = NORM_WEIGHTS if len(arrays) == len(NORM_WEIGHTS) else WEIGHTS[:len(arrays)]
            indexed = {kind: arrays[str(index)] for index, kind in enumerate(kinds) if str(index) in arrays}
            yield NamedLayer(place, names[0] if names else None, indexed)
        elif set(arrays) <= set(WEIGHTS):
            yield NamedLayer(place, place.rpartition('/')[2], arrays)


def in_order(layers: Sequence[NamedLayer], named: bool) -> list[NamedLayer]:
    """Layers of one kind in order of creation; numbers of names must follow one another."""
    if not named:
        counted = sorted(layers, key=lambda layer: number(layer.place.removesuffix('/vars')))
        return [layer for _, layer in sorted(zip(TOPOLOGICAL, counted, strict=False), key=lambda pair: pair[0])]
    ordered = sorted(layers, key=lambda layer: number(layer.name or ''))
    numbers = [number(layer.name or '') for layer in ordered]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    return ordered


def number(name: str) -> int:
    """The number a layer's name ends in, 0 without one."""
    match = re.search(r'_(\d{1,9})$', name)
    return int(match[1]) if match else 0


def pair(keys: Sequence[str], convs: Sequence[NamedLayer], norms: Sequence[NamedLayer],
         predictions: Sequence[NamedLayer]) -> dict[str, StoredArray]:
    """Key of a tensor -> its array, from the layers of each kind in order of creation."""
    blocks, heads = modules(keys)
    chosen: dict[str, StoredArray] = {}
    for prefix, conv, norm in zip(blocks, convs, norms, strict=False):  # a model file has more than a backbone
        chosen[f'{prefix}.conv.weight'] = conv.arrays['kernel']
        for weight, name in zip(NORM_WEIGHTS, ('weight', 'bias', 'running_mean', 'running_var'), strict=True):
            chosen[f'{prefix}.bn.{name}'] = norm.arrays[weight]
    for prefix, layer in zip(heads, predictions, strict=False):
        chosen[f'{prefix}.weight'], chosen[f'{prefix}.bias'] = layer.arrays['kernel'], layer.arrays['bias']
    return chosen


def modules(keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Blocks of a state dict in order of creation, and its prediction convolutions, told from their names."""
    blocks = {key.removesuffix('.conv.weight') for key in keys if key.endswith('.conv.weight')}
    heads = {key.rpartition('.')[0] for key in keys if '.predict_convs.' in key}

    def place(prefix: str) -> tuple[int, ...]:
        numbers = [int(digits) for digits in re.findall(r'\d+', prefix)]
        for index, module in enumerate(HEAD_MODULES):
            if prefix.startswith(module):
                return (2, numbers[0], index, *numbers[1:])
        return (0,) if prefix == 'backbone.conv1' else (1, *numbers)

    return sorted(blocks, key=place), sorted(heads)
