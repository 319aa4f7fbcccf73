"""From the arrays of a file to Keras layers in stored order.

Two families of layouts exist. The legacy one keeps ``<layer>/<weight name>`` with the order in the attributes
``layer_names`` and ``weight_names``. The other keeps ``layers/<class>[_n]/vars/<i>``, n counting layers of a class in
``model.layers`` order, with the layer's real name in an attribute of ``vars`` since Keras 3.
"""
from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.archive import WeightsFile
from mgdet_plugin.keras_io.safe_h5 import StoredArray, quoted

LayerKind = Literal['conv', 'biased conv', 'norm', 'dense', 'other']

NORM_WEIGHTS = ('gamma', 'beta', 'moving_mean', 'moving_variance')
KERNEL_WEIGHTS = ('kernel', 'bias')
VARS = re.compile(r'(?P<container>.*)/(?P<layer>[^/]+)/vars/(?P<index>\d{1,4})')
COUNTED = re.compile(r'(?P<base>.*?)(?:_(?P<count>\d{1,9}))?', re.DOTALL)


@dataclass(frozen=True)
class KerasLayer:
    """A layer of the file that has weights.

    Attributes:
        name: The layer's own name (``conv2d_55``), None where the file does not store it.
        place: Where it lies in the file, for messages and reports.
        arrays: Arrays by weight name: ``kernel``, ``bias``, ``gamma``, ``beta``, ``moving_mean``, ``moving_variance``;
            by index for kinds of layers the network does not have.
    """

    name: str | None
    place: str
    arrays: dict[str, StoredArray]

    @property
    def kind(self) -> LayerKind:
        """What the layer is, by its weights' names and ranks."""
        ranks = {weight: len(array.shape) for weight, array in self.arrays.items()}
        if ranks == dict.fromkeys(NORM_WEIGHTS, 1):
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
    """All layers with weights, in stored order.

    Attributes:
        layout: The layout found, in words.
        layers: In the order the file states.
        keras_version: As stored, None where it is not.
    """

    layout: str
    layers: list[KerasLayer] = field(repr=False)
    keras_version: str | None


def counted(name: str) -> tuple[str, int]:
    """Split a Keras layer name: ``conv2d`` -> (``conv2d``, 0), ``conv2d_12`` -> (``conv2d``, 12)."""
    match = COUNTED.fullmatch(name)
    assert match is not None  # the expression matches every string
    return match['base'], int(match['count'] or 0)


def stored_layers(weights: WeightsFile) -> StoredLayers:
    """Find a file's layers.

    Args:
        weights: The opened file.

    Raises:
        UserError: No Keras layers in the file, or a list of names that does not fit its arrays.
    """
    for root, layout in (('/', 'weights .h5 (layer_names)'), ('/model_weights', 'full model .h5 (model_weights)')):
        names = weights.texts(root, 'layer_names')
        if names is not None:
            version = weights.texts(root, 'keras_version') or weights.texts('/', 'keras_version')
            layers = legacy_layers(weights, root.rstrip('/'), names)
            return StoredLayers(layout, layers, version[0] if version else None)
    layers = vars_layers(weights)
    if not layers:
        raise UserError(f'{weights.name}: no Keras layers among its {len(weights.arrays)} arrays (no attribute '
                        'layer_names, no groups layers/<class>/vars); give a weights file saved by Keras')
    layout = '.weights.h5 (layers/<class>/vars)'
    return StoredLayers(f'.keras with {layout}' if weights.container != 'HDF5' else layout, layers, None)


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
        for weight in listed:
            array = weights.arrays.get(f'{root}/{name}/{weight}')
            scope, _, kind = re.sub(r':\d$', '', weight).rpartition('/')
            if array is None or kind in scopes[scope]:
                raise UserError(f'{weights.name}: the layer {quoted(name)} lists the weight {quoted(weight)}, which is '
                                + ('missing' if array is None else 'there twice'))
            scopes[scope][kind] = array
        if len(scopes) == 1:
            layers += [KerasLayer(name, f'{root}/{name}', next(iter(scopes.values())))]
        else:
            layers += [KerasLayer(scope.rpartition('/')[2] or name, f'{root}/{name}/{scope}', arrays)
                       for scope, arrays in scopes.items()]
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
        suffix = scope.removeprefix(layer.name) if scope.startswith(layer.name) else scope
        suffixes.setdefault(suffix, layer)
        if len(suffixes) > 1 or not re.fullmatch(r'(_\d+)?', suffix):
            raise UserError(f'{file_name}: the layer {layer.label} holds weights named after {quoted(scope)}; names '
                            'disagree, so which layer it is cannot be told; save the file again from Keras')


def vars_layers(weights: WeightsFile) -> list[KerasLayer]:
    """Layers of the ``layers/<class>[_n]/vars/<i>`` layout, by class and count."""
    groups: dict[tuple[str, str], dict[int, StoredArray]] = defaultdict(dict)
    for path, array in weights.arrays.items():
        match = VARS.fullmatch(path)
        if match and not path.startswith('/optimizer/'):
            groups[match['container'], match['layer']][int(match['index'])] = array
    layers = []
    for (container, layer), arrays in sorted(groups.items(), key=lambda item: (item[0][0], counted(item[0][1]))):
        place = f'{container}/{layer}'
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
                series.setdefault(counted(layer.place)[0], layer)
        if len(series) > 1:
            places = ' and '.join(quoted(layer.place) for layer in list(series.values())[:2])
            raise UserError(f'{file_name}: layers of one kind lie in several groups or classes ({places}), so their '
                            'order is not known; save the detector alone from Keras')


def name_weights(arrays: list[StoredArray]) -> dict[str, StoredArray]:
    """Name the arrays of a layer that stores them by index, from how many there are and their ranks."""
    ranks = [len(array.shape) for array in arrays]
    if ranks in ([4], [4, 1], [2], [2, 1]):
        return dict(zip(KERNEL_WEIGHTS, arrays, strict=False))
    if ranks == [1, 1, 1, 1]:
        return dict(zip(NORM_WEIGHTS, arrays, strict=True))
    return {str(index): array for index, array in enumerate(arrays)}
