"""The network built in Keras itself, for outputs to compare with and for ``.keras`` files.

This is the one module that needs Keras, and it imports it inside :func:`load_keras` alone. No file is read here: the
network is built from shapes, never from a stored config.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.mapping.architecture import RESIDUAL_BLOCKS, SCALES, Part, block_prefixes, predict_prefixes
from mgdet_plugin.weights.mapping.layout import FileLayout

Kernel = tuple[int, int, int, int]  # kernel height and width, input and output channels

BN_EPSILON = 1e-3
LEAKY_SLOPE = 0.1
CHANNELS_LAST = 'channels_last'


@dataclass(frozen=True)
class NetworkShapes:
    """What must be known of a network to build it.

    Attributes:
        kernels: (kh, kw, in, out) of every convolution without bias in order of creation: 66 of the model, 52 of the
            backbone.
        predictions: The 3 prediction kernels, coarse scale first; () for a backbone.
    """

    kernels: tuple[Kernel, ...]
    predictions: tuple[Kernel, ...]


def shapes_of(layout: FileLayout) -> NetworkShapes:
    """Shapes of the network in a resolved Keras file."""
    kernels, predictions = (tuple(cast(Kernel, layer.arrays['kernel'].shape) for layer in layers)
                            for layers in (layout.convs, layout.predictions))
    return NetworkShapes(kernels, predictions)


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

    Args:
        shapes: Kernels of the network.

    Returns:
        ``keras.Model`` with one input (None, None, 3) and the raw maps as outputs, channels last: strides 32, 16, 8
        of the model, 8, 16, 32 of a backbone. Its weights are Keras' random initial ones.

    Raises:
        UserError: Keras is not installed.
        ValueError: The number of kernels is that of no network, or a kernel does not fit the layer before it.
    """
    part: Part = 'model' if shapes.predictions else 'backbone'
    expected = len(block_prefixes(part)), len(predict_prefixes(part))
    if (len(shapes.kernels), len(shapes.predictions)) != expected:
        raise ValueError(f'a {part} has {expected[0]} kernels and {expected[1]} prediction kernels, got '
                         f'{len(shapes.kernels)} and {len(shapes.predictions)}')
    keras = load_keras()
    maker = LayerMaker(keras, shapes)
    image = keras.Input((None, None, 3), name='input_1' if keras.__version__.startswith('2.') else 'input_layer')
    outputs = backbone(maker, image)
    if part == 'model':
        outputs = neck_and_head(maker, outputs)
    return keras.Model(image, outputs, name='multigriddet_darknet' if part == 'model' else 'darknet53')


class LayerMaker:
    """Makes layers named by counters of its own, convolutions with the next kernel of the list.

    Args:
        keras: The module.
        shapes: Kernels in order of creation.
    """

    def __init__(self, keras: Any, shapes: NetworkShapes) -> None:
        self._layers = keras.layers
        self._kernels = iter(shapes.kernels)
        self._predictions = iter(shapes.predictions)
        self._made: Counter[str] = Counter()

    def make(self, kind: str, base: str, *args: Any, **options: Any) -> Any:
        """A layer of the class ``kind``, named ``base`` and its count from 0 as Keras does."""
        count = self._made[base]
        self._made[base] += 1
        return getattr(self._layers, kind)(*args, name=f'{base}_{count}' if count else base, **options)

    def block(self, maps: Any, stride: int = 1) -> Any:
        """Convolution, normalisation and activation; a stride of 2 pads one row and column at the top and left."""
        if stride == 2:
            maps = self.make('ZeroPadding2D', 'zero_padding2d', ((1, 0), (1, 0)), data_format=CHANNELS_LAST)(maps)
        kernel = next(self._kernels)
        conv = self.make('Conv2D', 'conv2d', kernel[3], kernel[:2], stride, 'valid' if stride == 2 else 'same',
                         CHANNELS_LAST, use_bias=False)
        maps = self._checked(conv, maps, kernel)
        maps = self.make('BatchNormalization', 'batch_normalization', epsilon=BN_EPSILON, momentum=0.99)(maps)
        return self.make('LeakyReLU', 'leaky_re_lu', LEAKY_SLOPE)(maps)

    def prediction(self, maps: Any) -> Any:
        """Prediction convolution, with bias; they are counted from 1."""
        kernel = next(self._predictions)
        self._made['predict_conv'] += not self._made['predict_conv']
        conv = self.make('Conv2D', 'predict_conv', kernel[3], kernel[:2], 1, 'same', CHANNELS_LAST)
        return self._checked(conv, maps, kernel)

    def upsampled(self, maps: Any) -> Any:
        """Rows and columns doubled by repetition."""
        return self.make('UpSampling2D', 'up_sampling2d', 2, CHANNELS_LAST, 'nearest')(maps)

    @staticmethod
    def _checked(conv: Any, maps: Any, kernel: Kernel) -> Any:
        outputs = conv(maps)
        if tuple(conv.kernel.shape) != kernel:
            raise ValueError(f'{conv.name} comes out with a kernel {tuple(conv.kernel.shape)} where {kernel} is given')
        return outputs


def backbone(maker: LayerMaker, image: Any) -> list[Any]:
    """Darknet53.

    Returns:
        Maps of stride 8, 16 and 32.
    """
    maps = maker.block(image)
    stages = []
    for repeats in RESIDUAL_BLOCKS:
        maps = maker.block(maps, stride=2)
        for _ in range(repeats):
            maps = maker.make('Add', 'add')([maps, maker.block(maker.block(maps))])
        stages.append(maps)
    return stages[-SCALES:]


def neck_and_head(maker: LayerMaker, stages: list[Any]) -> list[Any]:
    """The top-down path, a bridge and a prediction convolution on every scale.

    Args:
        maker: Makes the layers.
        stages: Backbone maps of stride 8, 16 and 32.

    Returns:
        Raw maps of stride 32, 16 and 8.
    """
    outputs = []
    maps = stages[-1]
    for scale in range(SCALES):
        for _ in range(3):
            maps = maker.block(maps)
        outputs.append(maker.prediction(maker.block(maps)))
        if scale < SCALES - 1:
            maps = maker.upsampled(maker.block(maps))
            maps = maker.make('Concatenate', 'concatenate')([maps, stages[-2 - scale]])
    return outputs
