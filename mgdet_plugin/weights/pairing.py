"""Which array of a source file belongs to which tensor of a checkpoint, told without the importer.

The importer resolves a file by stored order, names and shapes together. Here a layer's own name alone decides: the
number in ``conv2d_55`` less the smallest number of its kind is the layer's place in order of creation. So a fault in
one of the two ways shows as a difference. A file without names leaves only the order, which Keras itself can confirm.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.safe_h5 import StoredArray, quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.architecture import Part

# Places of the 66 convolutions in model.layers order, by which files without names count: bridges come last.
TOPOLOGICAL = (*range(55), 56, 57, 58, 59, 61, 62, 63, 64, 55, 60, 65)
COUNTS: dict[Part, int] = dict(model=66, backbone=52)
PREDICTIONS = 3
NORM_WEIGHTS = ('gamma', 'beta', 'moving_mean', 'moving_variance')
WEIGHTS = ('kernel', 'bias', *NORM_WEIGHTS)
NOT_LAYERS = ('/optimizer/', '/optimizer_weights/')
HEAD_MODULES = ('neck.blocks', 'bbox_head.bridges', 'neck.up_convs')  # as created on every scale
DARKNET_NORMS = dict(biases='beta', scales='gamma', rolling_mean='moving_mean', rolling_variance='moving_variance')
BY_NAMES = 'by the numbers in the layer names'
BY_FORMAT = "in the order of Darknet's format"
BY_ORDER = 'by stored order, for the file has no layer names; only --with-keras can confirm it'


@dataclass(frozen=True)
class Source:
    """A file whose weights a checkpoint should hold.

    Attributes:
        name: Path as given.
        size: Bytes of the file.
        sha256: Hex digest of the file.
        part: What it holds.
        pairing: How its arrays were paired with tensors.
        places: Key of the tensor -> where its array lies in the file.
        read: Key of the tensor -> float32 array in torch's layout.
    """

    name: str
    size: int
    sha256: str
    part: Part
    pairing: str
    places: dict[str, str]
    read: Callable[[str], np.ndarray]


@dataclass(frozen=True)
class NamedLayer:
    """A layer of the file.

    Attributes:
        place: Group in the file.
        name: Its own name, None where it is not stored.
        arrays: Weight name -> array.
    """

    place: str
    name: str | None
    arrays: dict[str, StoredArray]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of its arrays in Keras' order."""
        return tuple(len(self.arrays[weight].shape) for weight in WEIGHTS if weight in self.arrays)


@contextmanager
def open_source(path: str | Path, keys: Iterable[str]) -> Iterator[Source]:
    """Open a source file through the safe reader and pair its arrays with tensors.

    Args:
        path: Keras weights file, or one of Darknet's.
        keys: Keys of the checkpoint's tensors.

    Raises:
        UserError: The file is refused by the reader, or does not hold the network's layers.
    """
    with open_weights(path) as weights:
        layers = list(file_layers(weights))
        convs, norms, predictions = ([layer for layer in layers if layer.ranks == ranks]
                                     for ranks in ((4,), (1, 1, 1, 1), (4, 1)))
        part: Part = 'model' if len(convs) == COUNTS['model'] else 'backbone'
        if not len(convs) == len(norms) == COUNTS[part] or (part == 'model' and len(predictions) != PREDICTIONS):
            raise UserError(f'{weights.name}: {len(convs)} convolutions, {len(norms)} normalisations and '
                            f'{len(predictions)} predictions found; the model has 66, 66 and 3, the backbone 52 and 52')
        if part == 'backbone':
            predictions = []  # a classifier's
        named = all(layer.name is not None for layer in (*convs, *norms, *predictions))
        chosen = pair(weights.name, keys, [in_order(weights.name, kind, named) for kind in (convs, norms, predictions)])

        def read(key: str) -> np.ndarray:
            values = weights.read(chosen[key].path, chosen[key].shape)
            return values.transpose(3, 2, 0, 1) if values.ndim == 4 else values

        darknet = any(layer.place.rpartition('/')[2].startswith('convolutional') for layer in convs)
        pairing = BY_FORMAT if darknet else BY_NAMES if named else BY_ORDER
        yield Source(weights.name, weights.size, weights.sha256, part, pairing,
                     {key: array.path for key, array in chosen.items()}, read)


def file_layers(weights: WeightsFile) -> Iterator[NamedLayer]:
    """All groups of the file that hold weights of a layer."""
    groups: dict[str, dict[str, StoredArray]] = defaultdict(dict)
    for path, array in weights.arrays.items():
        place, _, weight = path.rpartition('/')
        if not path.startswith(NOT_LAYERS):
            groups[place][weight.split(':')[0]] = array
    scopes = defaultdict(set)
    for place in groups:
        scopes[layer_group(place)].add(place)
    for place, arrays in groups.items():
        if place.endswith('/vars') and all(index.isdigit() for index in arrays):
            names = weights.texts(place, 'name')
            count = len(arrays)
            kinds: Sequence[str] = NORM_WEIGHTS if count == len(NORM_WEIGHTS) else WEIGHTS[:count]
            indexed = {kind: arrays[str(index)] for index, kind in enumerate(kinds) if str(index) in arrays}
            yield NamedLayer(place, names[0] if names else None, indexed)
        elif set(arrays) == {'weights', *DARKNET_NORMS}:
            name = place.rpartition('/')[2]
            yield NamedLayer(place, name, {'kernel': arrays['weights']})
            yield NamedLayer(place, name, {keras: arrays[darknet] for darknet, keras in DARKNET_NORMS.items()})
        elif set(arrays) <= set(WEIGHTS):
            top = layer_group(place)
            alone = len(scopes[top]) == 1  # else a model nested in a layer, whose scopes are the layers
            yield NamedLayer(place, (top if alone else place).rpartition('/')[2], arrays)


def layer_group(place: str) -> str:
    """The group of the layer that a place of the legacy layout lies in."""
    inside = place.removeprefix('/model_weights')
    return place[:len(place) - len(inside)] + '/'.join(inside.split('/')[:2])


def in_order(file_name: str, layers: Sequence[NamedLayer], named: bool) -> list[NamedLayer]:
    """Layers of one kind in order of creation.

    Raises:
        UserError: The numbers in their names are not one after the other.
    """
    if not named:
        counted = sorted(layers, key=lambda layer: number(layer.place.removesuffix('/vars')))
        return [layer for _, layer in sorted(zip(TOPOLOGICAL, counted, strict=False), key=lambda pair: pair[0])]
    ordered = sorted(layers, key=lambda layer: number(layer.name or ''))
    numbers = [number(layer.name or '') for layer in ordered]
    gap = next((at for at, found in enumerate(numbers) if found != numbers[0] + at), None)
    if gap is not None:
        raise UserError(f'{file_name}: after the layer {quoted(ordered[gap - 1].name or "")} comes '
                        f'{quoted(ordered[gap].name or "")}; names that do not count one by one cannot be verified')
    return ordered


def number(name: str) -> int:
    """The number a layer's name ends in, 0 without one."""
    match = re.search(r'_(\d{1,9})$', name)
    return int(match[1]) if match else 0


def pair(file_name: str, keys: Iterable[str], kinds: Sequence[Sequence[NamedLayer]]) -> dict[str, StoredArray]:
    """Key of a tensor -> its array.

    Args:
        file_name: What to call the file in messages.
        keys: Keys of the checkpoint.
        kinds: Convolutions, normalisations and prediction convolutions of the file in order of creation.

    Raises:
        UserError: The checkpoint has layers the file has not.
    """
    blocks, heads = modules(keys)
    convs, norms, predictions = kinds
    if len(blocks) > len(convs) or len(heads) > len(predictions):
        raise UserError(f'{file_name} is a backbone file, and the checkpoint holds a whole model; give the file the '
                        'checkpoint was imported from')
    chosen: dict[str, StoredArray] = {}
    for prefix, conv, norm in zip(blocks, convs, norms, strict=False):  # a model file has more than a backbone
        chosen[f'{prefix}.conv.weight'] = conv.arrays['kernel']
        for weight, name in zip(NORM_WEIGHTS, ('weight', 'bias', 'running_mean', 'running_var'), strict=True):
            chosen[f'{prefix}.bn.{name}'] = norm.arrays[weight]
    for prefix, layer in zip(heads, predictions, strict=False):
        chosen[f'{prefix}.weight'], chosen[f'{prefix}.bias'] = layer.arrays['kernel'], layer.arrays['bias']
    return chosen


def modules(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Blocks of a checkpoint in order of creation, and its prediction convolutions, told from their names."""
    blocks, heads = set(), set()
    for key in keys:
        if key.endswith('.conv.weight'):
            blocks.add(key.removesuffix('.conv.weight'))
        elif '.predict_convs.' in key:
            heads.add(key.rpartition('.')[0])

    def place(prefix: str) -> tuple[int, ...]:
        numbers = [int(digits) for digits in re.findall(r'\d+', prefix)]
        for index, module in enumerate(HEAD_MODULES):
            if prefix.startswith(module):
                return (2, numbers[0], index, *numbers[1:])
        return (0,) if prefix == 'backbone.conv1' else (1, *numbers)

    return sorted(blocks, key=place), sorted(heads)
