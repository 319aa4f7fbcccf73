"""The layers Keras builds for the network, in ``model.layers`` order, and which of our tensors each one holds."""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mgdet_plugin.weights.mapping.architecture import Part, block_prefixes, predict_prefixes
from mgdet_plugin.weights.mapping.layout import TORCH_NORM_NAMES

STAGE_START = re.compile(r'backbone\.conv_res_block\d\.conv')
RESIDUAL_END = re.compile(r'backbone\.conv_res_block\d\.res\d\.conv2')


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


def conv(index: int, prefix: str) -> Layer:
    """The convolution of a block; ``index`` counts blocks in order of creation."""
    return Layer(numbered('conv2d', index), 'conv2d', dict(kernel=f'{prefix}.conv.weight'))


def norm(index: int, prefix: str) -> Layer:
    """The normalisation of a block."""
    tensors = {weight: f'{prefix}.bn.{name}' for weight, name in TORCH_NORM_NAMES.items()}
    return Layer(numbered('batch_normalization', index), 'batch_normalization', tensors)


def activation(index: int) -> Layer:
    """The activation of a block."""
    return Layer(numbered('leaky_re_lu', index), 'leaky_re_lu', {})


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

    blocks = list(enumerate(block_prefixes(part)))
    bridges = [(index, prefix) for index, prefix in blocks if prefix.startswith('bbox_head.')]
    for index, prefix in blocks:
        if (index, prefix) in bridges:
            continue
        if STAGE_START.fullmatch(prefix):
            unweighted('zero_padding2d')
        layers += [conv(index, prefix), norm(index, prefix), activation(index)]
        if RESIDUAL_END.fullmatch(prefix):
            unweighted('add')
        elif prefix.startswith('neck.up_convs.'):
            unweighted('up_sampling2d', 'concatenate')
    layers += [conv(*bridge) for bridge in bridges] + [norm(*bridge) for bridge in bridges]
    layers += [activation(index) for index, _ in bridges]
    return layers + [Layer(f'predict_conv_{scale}', 'conv2d', dict(kernel=f'{prefix}.weight', bias=f'{prefix}.bias'))
                     for scale, prefix in enumerate(predict_prefixes(part), 1)]
