"""From the arrays of a file to Keras layers in stored order.

Two families of layouts exist. The legacy one keeps ``<layer>/<weight name>`` with the order in the attributes
``layer_names`` and ``weight_names``. The other keeps ``layers/<class>[_n]/vars/<i>``, n counting layers of a class in
``model.layers`` order; later versions of Keras 3 add the layer's real name in an attribute of ``vars``, Keras 2 and the
first versions of Keras 3 do not. Keras 2.12 and 2.13 call ``layers`` ``_layer_checkpoint_dependencies``.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.darknet_file import DarknetFile
from mgdet_plugin.weights.container.stored_array import StoredArray, quoted
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.architecture import NORM_TENSORS

LayerKind = Literal['conv', 'biased conv', 'norm', 'dense', 'other']

KERNEL_WEIGHTS = ('kernel', 'bias')
# Keras 2 on Windows joins all but the last two parts of a path by backslashes.
VARS = re.compile(r'(?P<place>(?P<container>.*)[/\\](?P<layer>[^/\\]+))/vars/(?P<index>\d{1,4})', re.DOTALL)
# Groups of a training file that hold no layers, anywhere on a path; a nested model keeps its own.
STATE_GROUPS = {'optimizer': 'optimizer state', 'optimizer_weights': 'optimizer state',
                'seed_generator': 'random generator state', 'metrics': 'state of a metric',
                'compile_metrics': 'state of a metric', '_metrics': 'state of a metric'}
METRIC_WEIGHTS = {'total', 'count', 'true_positives', 'true_negatives', 'false_positives', 'false_negatives',
                  'total_confusion_matrix'}
COUNTED = re.compile(r'(?P<base>.*?)(?:_(?P<count>\d{1,9}))?', re.DOTALL)


@dataclass(frozen=True)
class KerasLayer:
    """A layer of the file that has weights.

    Attributes:
        name: The layer's own name (``conv2d_55``), None where the file does not store it.
        place: Where it lies in the file, for messages and reports.
        arrays: Arrays by Keras' name of the weight; by index for kinds of layers the network does not have.
        in_runs: Whether it is listed among the weights of a nested model, trainable ones first, so that of two layers
            in model order a frozen one may come second.
    """

    name: str | None
    place: str
    arrays: dict[str, StoredArray]
    in_runs: bool = False

    @property
    def kind(self) -> LayerKind:
        """What the layer is, by its weights' names and ranks."""
        ranks = {weight: len(array.shape) for weight, array in self.arrays.items()}
        if ranks == dict.fromkeys(NORM_TENSORS, 1):
            return 'norm'
        if ranks == {'kernel': 4}:
            return 'conv'
        if ranks == {'kernel': 4, 'bias': 1}:
            return 'biased conv'
        return 'dense' if ranks.get('kernel') == 2 and set(ranks) <= set(KERNEL_WEIGHTS) else 'other'

    @property
    def label(self) -> str:
        """What to call the layer in a message."""
        return quoted(self.name if self.name is not None else self.place)


@dataclass(frozen=True)
class StoredLayers:
    """All layers with weights, in stored order."""

    layout: str  # the layout found, in words
    layers: list[KerasLayer] = field(repr=False)
    keras_version: str | None  # as stored, None where it is not
    in_model_order: bool  # whether the order is that of ``model.layers`` over layers of all classes; else of each class


def counted(name: str) -> tuple[str, int]:
    """Split a Keras layer name: ``conv2d`` -> (``conv2d``, 0), ``scope/conv2d_12`` -> (``conv2d``, 12)."""
    match = COUNTED.fullmatch(name.rpartition('/')[2])
    assert match is not None  # the expression matches every string
    return match['base'], int(match['count'] or 0)


def state_kind(path: str) -> str | None:
    """What the array at a path is if it lies in a group of training state, else None."""
    return next((STATE_GROUPS[part] for part in re.split(r'[/\\]', path)[:-1] if part in STATE_GROUPS), None)


def is_state(layer: KerasLayer) -> bool:
    """Whether a layer holds only what no layer of a network multiplies or adds: scalars, whole numbers, metrics."""
    return all(not array.shape or array.dtype == 'integer' or weight in METRIC_WEIGHTS
               for weight, array in layer.arrays.items())


def stored_layers(weights: WeightsFile) -> StoredLayers:
    """Find the layers of an opened file.

    Raises:
        UserError: No Keras layers in the file, or a list of names that does not fit its arrays.
    """
    if isinstance(weights, DarknetFile):
        layers = [KerasLayer(None, place, arrays) for place, arrays in weights.layers]
        return StoredLayers(weights.layout, layers, None, True)
    for root, layout in (('/', 'weights .h5 (layer_names)'), ('/model_weights', 'full model .h5 (model_weights)')):
        names = weights.texts(root, 'layer_names')
        if names is not None:
            version = weights.texts(root, 'keras_version') or weights.texts('/', 'keras_version')
            layers = legacy_layers(weights, root.rstrip('/'), names)
            return StoredLayers(layout, layers, version[0] if version else None, True)
    layers = vars_layers(weights)
    if not layers:
        raise UserError(f'{weights.name}: no Keras layers among its {len(weights.arrays)} arrays (no attribute '
                        'layer_names, no groups layers/<class>/vars); give a weights file saved by Keras')
    layout = '.weights.h5 (layers/<class>/vars)'
    return StoredLayers(f'.keras with {layout}' if weights.container != 'HDF5' else layout, layers, None, False)


def legacy_layers(weights: WeightsFile, root: str, names: list[str]) -> list[KerasLayer]:
    """Layers of the legacy layout; a model nested in a layer is taken apart by the scopes of its weight names."""
    if len(set(names)) != len(names):
        raise UserError(f'{weights.name}: layer_names lists a layer twice')
    layers: list[KerasLayer] = []
    for name in names:
        listed = weights.texts(f'{root}/{name}', 'weight_names')
        if listed is None:
            raise UserError(f'{weights.name}: the layer {quoted(name)} of layer_names has no weight_names')
        scopes: dict[str, dict[str, StoredArray]] = defaultdict(dict)
        last: dict[str, int] = {}
        for place, weight in enumerate(listed):
            array = weights.arrays.get(f'{root}/{name}/{weight}')
            scope, _, kind = re.sub(r':\d$', '', weight).rpartition('/')
            if array is None or kind in scopes[scope]:
                raise UserError(f'{weights.name}: the layer {quoted(name)} lists the weight {quoted(weight)}, which is '
                                + ('missing' if array is None else 'there twice'))
            scopes[scope][kind] = array
            last[scope] = place
        if len(scopes) == 1:
            layers += [KerasLayer(name, f'{root}/{name}', next(iter(scopes.values())))]
        else:  # moving statistics, which come last, are in model order whether or not their layers are frozen
            layers += [KerasLayer(scope.rpartition('/')[2] or name, f'{root}/{name}/{scope}', scopes[scope], True)
                       for scope in sorted(scopes, key=last.__getitem__)]
    check_scopes(weights.name, layers)
    return layers


def check_scopes(file_name: str, layers: list[KerasLayer]) -> None:
    """Refuse layers whose weights are named after another layer.

    TensorFlow adds one suffix to the scopes of a whole model built twice in a graph; that suffix is let through.
    """
    suffixes: dict[str, KerasLayer] = {}
    for layer in layers:
        if layer.kind == 'other' or layer.name is None:
            continue
        path = next(iter(layer.arrays.values())).path
        scope = path.removeprefix(layer.place).rpartition('/')[0].rpartition('/')[2]
        if not scope:
            continue
        name = layer.name.rpartition('/')[2]
        suffix = scope.removeprefix(name) if scope.startswith(name) else scope
        suffixes.setdefault(suffix, layer)
        if len(suffixes) > 1 or not re.fullmatch(r'(_\d+)?', suffix):
            raise UserError(f'{file_name}: the layer {layer.label} holds weights named after {quoted(scope)}; names '
                            'disagree, so which layer it is cannot be told; save the file again from Keras')


def vars_layers(weights: WeightsFile) -> list[KerasLayer]:
    """Layers of the ``layers/<class>[_n]/vars/<i>`` layout, by class and count."""
    places: dict[str, dict[int, StoredArray]] = defaultdict(dict)
    order: dict[str, tuple[str, tuple[str, int]]] = {}
    for path, array in weights.arrays.items():
        match = VARS.fullmatch(path)
        if match and state_kind(path) is None:
            places[match['place']][int(match['index'])] = array
            order[match['place']] = match['container'], counted(match['layer'])
    layers = []
    for place in sorted(places, key=order.__getitem__):
        arrays = places[place]
        if sorted(arrays) != list(range(len(arrays))):
            raise UserError(f'{weights.name}: {quoted(place)} lacks one of its arrays, it has {sorted(arrays)}')
        names = weights.texts(f'{place}/vars', 'name')
        layers.append(KerasLayer(names[0] if names else None, place, name_weights([arrays[i] for i in sorted(arrays)])))
    check_one_count(weights.name, layers)
    return layers


def check_one_count(file_name: str, layers: list[KerasLayer]) -> None:
    """Refuse convolutions or normalisations counted in more than one group or class: their order is not stored."""
    for kinds in (('conv', 'biased conv'), ('norm',)):
        series: dict[str, KerasLayer] = {}
        for layer in layers:
            if layer.kind in kinds:
                series.setdefault(layer.place.removesuffix(f'_{counted(layer.place)[1]}'), layer)
        if len(series) > 1:
            places = ' and '.join(quoted(layer.place) for layer in list(series.values())[:2])
            raise UserError(f'{file_name}: layers of one kind lie in several groups or classes ({places}), so their '
                            'order is not known; save the detector alone from Keras')


def check_numbers(file_name: str, layers: Sequence[KerasLayer]) -> None:
    """Refuse layers of one class that are not numbered in even steps from 0: by ones, in Keras 2.12 and 2.13 by twos.

    Without names the number is all that tells a layer's place: a gap means that one stands where another belongs.
    """
    base = layers[0].place.removesuffix(f'_{counted(layers[0].place)[1]}')
    step = 2 if layers[1].place == f'{base}_2' else 1
    for index, layer in enumerate(layers):
        expected = f'{base}_{index * step}' if index else base
        if layer.place != expected:
            raise UserError(f'{file_name}: {quoted(layer.place)} stands where {quoted(expected)} belongs; Keras leaves '
                            'no gap in its numbers, and the file has no names to tell layers by; save it again')


def name_weights(arrays: list[StoredArray]) -> dict[str, StoredArray]:
    """Name the arrays of a layer that stores them by index, from how many there are and their ranks."""
    ranks = [len(array.shape) for array in arrays]
    if ranks in ([4], [4, 1], [2], [2, 1]):
        return dict(zip(KERNEL_WEIGHTS, arrays, strict=False))
    if ranks == [1, 1, 1, 1]:
        return dict(zip(NORM_TENSORS, arrays, strict=True))
    return {str(index): array for index, array in enumerate(arrays)}
