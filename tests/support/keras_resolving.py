"""Resolve trees without writing them, and hold the outcome against the layers' creation numbers."""
from __future__ import annotations

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.keras_model import NetworkShapes
from mgdet_plugin.weights.mapping.layout import FileLayout, assign, resolve_layers
from tests.support.keras_files import MODEL_TREES, NAMED_TREES, Listing, Tree

LEGACY_TREES = tuple(name for name in NAMED_TREES if name.endswith(('legacy.h5', 'full.h5')))
VARS_TREES = tuple(name for name in MODEL_TREES if name not in LEGACY_TREES)
NAMED_VARS_TREES = tuple(name for name in VARS_TREES if name in NAMED_TREES)
TENSORS = dict(weight='gamma', bias='beta', running_mean='moving_mean', running_var='moving_variance')


def resolved(source: Tree) -> FileLayout:
    return resolve_layers(Listing(source))  # type: ignore[arg-type]


def refusal(source: Tree) -> str:
    with pytest.raises(UserError) as caught:
        resolved(source)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def assert_exact(source: Tree) -> FileLayout:
    """Resolve a tree and hold the layer that fills every place against the layer's creation number."""
    layout = resolved(source)

    def layer_of(path: str) -> str:
        return str(source['datasets'][path]['layer'])

    for base, layers, weight in (('conv2d', layout.convs, 'kernel'), ('batch_normalization', layout.norms, 'gamma')):
        assert [layer_of(layer.arrays[weight].path) for layer in layers] \
            == [f'{base}_{index}' if index else base for index in range(len(layers))]
    assert [layer_of(layer.arrays['bias'].path) for layer in layout.predictions] \
        == [f'predict_conv_{index}' for index in range(1, 4)][:len(layout.predictions)]
    for item in assign(layout, layout.part):
        tensor = item.key.rpartition('.')[2]
        expected = TENSORS[tensor] if '.bn.' in item.key else dict(weight='kernel', bias='bias')[tensor]
        assert source['datasets'][item.source.path]['kind'] == expected
    return layout


def shapes_of(layout: FileLayout) -> NetworkShapes:
    """Shapes of the network in a resolved Keras file."""
    kernels, predictions = (tuple(layer.arrays['kernel'].shape for layer in layers)
                            for layers in (layout.convs, layout.predictions))
    return NetworkShapes(kernels, predictions)
