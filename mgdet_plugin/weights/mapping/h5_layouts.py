"""Write the two layouts of Keras weights files, with h5py alone.

A file is the same group for group, attribute for attribute and array for array as the one Keras writes of a model
built first in its process; the tests hold both against recorded files of Keras.
"""
from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable

import h5py
import numpy as np

from mgdet_plugin.weights.mapping.architecture import Part
from mgdet_plugin.weights.mapping.keras_order import model_layers, numbered

LEGACY_VERSION = '2.15.0'  # the Keras whose legacy layout this is; every later one reads it
LEGACY_INPUT = 'input_1'
TOP_LEVEL = 'top_level_model_weights'
MODEL_NAMES: dict[Part, str] = dict(model='multigriddet_darknet', backbone='darknet53')

Read = Callable[[str], np.ndarray]
"""Key of our tensor -> its array in Keras' layout."""


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
