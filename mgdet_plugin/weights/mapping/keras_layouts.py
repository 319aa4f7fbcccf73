"""The layers Keras builds for the network, and the two layouts of its weights files, written with h5py alone.

A file is the same group for group, attribute for attribute and array for array as the one Keras writes of a model
built first in its process; the tests hold both against recorded files of Keras.
"""
from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import h5py
import numpy as np

from mgdet_plugin.weights.mapping.architecture import Part, blocks, predict_prefixes, tensor_keys

LEGACY_VERSION = '2.15.0'  # the Keras whose legacy layout this is; every later one reads it
LEGACY_INPUT = 'input_1'
TOP_LEVEL = 'top_level_model_weights'
MODEL_NAMES: dict[Part, str] = dict(model='multigriddet_darknet', backbone='darknet53')

Read = Callable[[str], np.ndarray]
"""Key of our tensor -> its array in Keras' layout; called once for each."""


@dataclass(frozen=True)
class Layer:
    """A layer of the Keras model."""

    name: str  # its own, counted in order of creation
    base: str  # its class in snake case, by which ``.weights.h5`` counts it
    tensors: dict[str, str]  # weight name in Keras -> key of our tensor, in Keras' order; {} where it has no weights


def numbered(base: str, count: int) -> str:
    """Keras' name for the layer of a class counted from 0: ``add``, ``add_1``, ``add_2``."""
    return f'{base}_{count}' if count else base


def model_layers(part: Part) -> list[Layer]:
    """All layers in ``model.layers`` order: bridges after all else, and their layers interleaved.

    Args:
        part: The model has 234 layers, the backbone 185.
    """
    counts: Counter[str] = Counter()

    def created(base: str, tensors: dict[str, str] | None = None) -> Layer:
        counts[base] += 1
        return Layer(numbered(base, counts[base] - 1), base, tensors or {})

    layers, bridges = [created('input_layer')], []
    for block in blocks(part):
        if block.stride == 2:
            layers.append(created('zero_padding2d'))
        if len(block.inputs) > 1:
            layers += [created('up_sampling2d'), created('concatenate')]
        norm = tensor_keys(block.prefix)
        kernel = dict(kernel=norm.pop('kernel'))
        made = created('conv2d', kernel), created('batch_normalization', norm), created('leaky_re_lu')
        if block.prefix.startswith('bbox_head.'):
            bridges.append(made)
        else:
            layers += made
        if block.added_to is not None:
            layers.append(created('add'))
    layers += [layer for kind in zip(*bridges, strict=True) for layer in kind]
    return layers + [Layer(f'predict_conv_{scale}', 'conv2d', tensor_keys(prefix))
                     for scale, prefix in enumerate(predict_prefixes(part), 1)]


def legacy_h5(part: Part, read: Read) -> io.BytesIO:
    """The content of ``save_weights('x.h5')``: ``<layer>/<layer>/<weight>:0``, order in attributes."""
    content = io.BytesIO()
    layers = model_layers(part)
    with h5py.File(content, 'w') as file:
        names = [LEGACY_INPUT if layer.base == 'input_layer' else layer.name for layer in layers]
        file.attrs['layer_names'] = [name.encode() for name in names]
        file.attrs['backend'] = b'tensorflow'
        file.attrs['keras_version'] = LEGACY_VERSION.encode()
        for name, layer in zip(names, layers, strict=True):
            group = file.create_group(name)
            group.attrs['weight_names'] = [f'{name}/{weight}:0'.encode() for weight in layer.tensors]
            for weight, key in layer.tensors.items():
                group[f'{name}/{weight}:0'] = read(key)
        file.create_group(TOP_LEVEL).attrs['weight_names'] = []
    return content


def weights_h5(part: Part, read: Read) -> io.BytesIO:
    """The content of ``save_weights('x.weights.h5')``: ``layers/<class>[_n]/vars/<i>``, n counting a class in order."""
    content = io.BytesIO()
    counts: Counter[str] = Counter()
    with h5py.File(content, 'w') as file:
        file.create_group('vars').attrs['name'] = MODEL_NAMES[part]  # empty; Keras 2.15 and early Keras 3 want it
        for layer in model_layers(part):
            group = file.create_group(f'layers/{numbered(layer.base, counts[layer.base])}/vars')
            counts[layer.base] += 1
            group.attrs['name'] = layer.name
            for index, key in enumerate(layer.tensors.values()):
                group[str(index)] = read(key)
    return content
