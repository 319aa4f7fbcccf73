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

from mgdet_plugin.weights.mapping.architecture import Part, blocks, predict_prefixes
from mgdet_plugin.weights.mapping.layout import TORCH_NORM_NAMES

LEGACY_VERSION = '2.15.0'  # the Keras whose legacy layout this is; every later one reads it
LEGACY_INPUT = 'input_1'
TOP_LEVEL = 'top_level_model_weights'
MODEL_NAMES: dict[Part, str] = dict(model='multigriddet_darknet', backbone='darknet53')

Read = Callable[[str], np.ndarray]
"""Key of our tensor -> its array in Keras' layout."""


@dataclass(frozen=True)
class Layer:
    """A layer of the Keras model.

    Attributes:
        name: Its own name, counted in order of creation.
        base: Its class in snake case, by which ``.weights.h5`` counts it.
        tensors: Weight name in Keras -> key of our tensor, in Keras' order; empty where it has no weights.
    """

    name: str
    base: str
    tensors: dict[str, str]


def numbered(base: str, count: int) -> str:
    """Keras' name for the layer of a class counted from 0: ``add``, ``add_1``, ``add_2``."""
    return f'{base}_{count}' if count else base


def block_layers(index: int, prefix: str) -> tuple[Layer, Layer, Layer]:
    """Convolution, normalisation and activation of a block; ``index`` counts blocks in order of creation."""
    norm = {weight: f'{prefix}.bn.{name}' for weight, name in TORCH_NORM_NAMES.items()}
    return (Layer(numbered('conv2d', index), 'conv2d', dict(kernel=f'{prefix}.conv.weight')),
            Layer(numbered('batch_normalization', index), 'batch_normalization', norm),
            Layer(numbered('leaky_re_lu', index), 'leaky_re_lu', {}))


def model_layers(part: Part) -> list[Layer]:
    """All layers in ``model.layers`` order: bridges after all else, and their layers interleaved.

    Args:
        part: The model has 234 layers, the backbone 185.
    """
    layers = [Layer('input_layer', 'input_layer', {})]
    counts: Counter[str] = Counter()

    def unweighted(*bases: str) -> None:
        for base in bases:
            layers.append(Layer(numbered(base, counts[base]), base, {}))
            counts[base] += 1

    bridges = []
    for index, block in enumerate(blocks(part)):
        made = block_layers(index, block.prefix)
        if block.prefix.startswith('bbox_head.'):
            bridges.append(made)
            continue
        if block.stride == 2:
            unweighted('zero_padding2d')
        if len(block.inputs) > 1:
            unweighted('up_sampling2d', 'concatenate')
        layers += made
        if block.added_to is not None:
            unweighted('add')
    layers += [layer for kind in zip(*bridges, strict=True) for layer in kind]
    return layers + [Layer(f'predict_conv_{scale}', 'conv2d', dict(kernel=f'{prefix}.weight', bias=f'{prefix}.bias'))
                     for scale, prefix in enumerate(predict_prefixes(part), 1)]


def legacy_h5(part: Part, read: Read) -> io.BytesIO:
    """The content of ``save_weights('x.h5')``: ``<layer>/<layer>/<weight>:0``, order in attributes.

    Args:
        part: What is written.
        read: Gives the array of every tensor, called once each.
    """
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
    """The content of ``save_weights('x.weights.h5')``: ``layers/<class>[_n]/vars/<i>``, n counting a class in order.

    Args:
        part: What is written.
        read: Gives the array of every tensor, called once each.
    """
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
