"""The network built in Keras itself, for ``.keras`` files.

This is the one module that needs Keras, and it imports it inside :func:`load_keras` alone. No file is read here: the
network is built from shapes, never from a stored config.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from typing import Any, NamedTuple

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.mapping.architecture import SCALES, Part, blocks, darknet_blocks, predictions
from mgdet_plugin.weights.mapping.keras_layouts import MODEL_NAMES, numbered

Kernel = tuple[int, ...]  # kernel height and width, input and output channels

BN_EPSILON = 1e-3
LEAKY_SLOPE = 0.1
CHANNELS_LAST = 'channels_last'


class NetworkShapes(NamedTuple):
    """What must be known of a network to build it: (kh, kw, in, out) of its kernels."""

    kernels: tuple[Kernel, ...]  # without bias, in order of creation: 66 of the model, 52 of the backbone
    predictions: tuple[Kernel, ...]  # 3, coarse scale first; () for a backbone


def load_keras() -> Any:
    """Import Keras, 3 or 2.15, whichever is installed.

    Where ``KERAS_BACKEND`` is not set and TensorFlow is not installed, it is set to ``torch`` first: Keras would
    otherwise ask for TensorFlow, and torch is always here.

    Returns:
        The module ``keras``.

    Raises:
        UserError: Keras is not installed, or its backend is not.
    """
    if 'keras' not in sys.modules and importlib.util.find_spec('tensorflow') is None:
        os.environ.setdefault('KERAS_BACKEND', 'torch')
    try:
        return importlib.import_module('keras')
    except ImportError as error:
        backend = os.environ.get('KERAS_BACKEND', 'tensorflow')
        raise UserError(f'Keras cannot be imported with the backend {backend} ({error}); install it with '
                        "pip install 'mgdet[keras]' and set KERAS_BACKEND=torch, which needs nothing more") from error


def build_keras_model(shapes: NetworkShapes) -> Any:
    """Build the network in Keras with the layer names Keras gives in a fresh process (``conv2d``, ``conv2d_1``, ...).

    Returns:
        ``keras.Model`` with one input (None, None, 3) and the raw maps as outputs, channels last: strides 32, 16, 8
        of the model, 8, 16, 32 of a backbone. Its weights are Keras' random initial ones.

    Raises:
        UserError: Keras is not installed.
        ValueError: The number of kernels is that of no network, or a kernel does not fit the layer before it.
    """
    part: Part = 'model' if shapes.predictions else 'backbone'
    expected = len(blocks(part)), len(predictions(part))
    if (len(shapes.kernels), len(shapes.predictions)) != expected:
        raise ValueError(f'a {part} has {expected[0]} kernels and {expected[1]} prediction kernels, got '
                         f'{len(shapes.kernels)} and {len(shapes.predictions)}')
    keras = load_keras()
    image = keras.Input((None, None, 3), name='input_1' if keras.__version__.startswith('2.') else 'input_layer')
    return keras.Model(image, LayerMaker(keras).network(part, image, shapes), name=MODEL_NAMES[part])


class LayerMaker:
    """Makes layers of the module ``keras``, named by counters of its own as Keras counts them in a fresh process."""

    def __init__(self, keras: Any) -> None:
        self._layers = keras.layers
        self._made: Counter[str] = Counter()

    def network(self, part: Part, image: Any, shapes: NetworkShapes) -> list[Any]:
        """Put the whole network on an input: maps of stride 32, 16 and 8 of the model, 8, 16 and 32 of a backbone."""
        maps: list[Any] = []  # of every block
        for block, kernel in zip(blocks(part), shapes.kernels, strict=False):
            taken = [maps[index] for index in block.inputs] or [image]
            if len(taken) > 1:  # the coarser scale, its rows and columns doubled by repetition, beside a stage
                taken[0] = self.make('UpSampling2D', 'up_sampling2d', 2, CHANNELS_LAST, 'nearest')(taken[0])
                taken = [self.make('Concatenate', 'concatenate')(taken)]
            given = self.block(taken[0], kernel, block.stride)
            maps.append(given if block.added_to is None else self.make('Add', 'add')([maps[block.added_to], given]))
        if part == 'backbone':
            return [maps[end] for end in darknet_blocks()[1][-SCALES:]]
        return [self.prediction(maps[block.inputs[0]], kernel)
                for block, kernel in zip(predictions(part), shapes.predictions, strict=True)]

    def make(self, kind: str, base: str, *args: Any, **options: Any) -> Any:
        """A layer of the class ``kind``, named ``base`` and its count from 0."""
        count = self._made[base]
        self._made[base] += 1
        return getattr(self._layers, kind)(*args, name=numbered(base, count), **options)

    def block(self, maps: Any, kernel: Kernel, stride: int) -> Any:
        """Convolution, normalisation and activation; a stride of 2 pads one row and column at the top and left."""
        if stride == 2:
            maps = self.make('ZeroPadding2D', 'zero_padding2d', ((1, 0), (1, 0)), data_format=CHANNELS_LAST)(maps)
        conv = self.make('Conv2D', 'conv2d', kernel[3], kernel[:2], stride, 'valid' if stride == 2 else 'same',
                         CHANNELS_LAST, use_bias=False)
        maps = self._checked(conv, maps, kernel)
        maps = self.make('BatchNormalization', 'batch_normalization', epsilon=BN_EPSILON, momentum=0.99)(maps)
        return self.make('LeakyReLU', 'leaky_re_lu', LEAKY_SLOPE)(maps)

    def prediction(self, maps: Any, kernel: Kernel) -> Any:
        """Prediction convolution, with bias; they are counted from 1."""
        self._made['predict_conv'] += not self._made['predict_conv']
        conv = self.make('Conv2D', 'predict_conv', kernel[3], kernel[:2], 1, 'same', CHANNELS_LAST)
        return self._checked(conv, maps, kernel)

    @staticmethod
    def _checked(conv: Any, maps: Any, kernel: Kernel) -> Any:
        outputs = conv(maps)
        if tuple(conv.kernel.shape) != kernel:
            raise ValueError(f'{conv.name} comes out with a kernel {tuple(conv.kernel.shape)} where {kernel} is given')
        return outputs
