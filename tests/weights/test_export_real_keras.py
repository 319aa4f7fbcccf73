"""Keras itself loads what is exported, and agrees with what is imported; at a sixteenth of every width."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.checkpoint import read_checkpoint
from mgdet_plugin.weights.exporter import export_keras, network_shapes
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.keras_model import build_keras_model, load_keras
from mgdet_plugin.weights.mapping.architecture import Part
from mgdet_plugin.weights.mapping.keras_layouts import model_layers
from tests.support.checkpoints import listing, save, tiny_state
from tests.support.keras_agreement import compare_with_keras, torch_maps, unset
from tests.support.keras_files import TINY_OPTIONS, shifted, tiny, write, write_tiny

LAYOUTS = ('a.h5', 'a.weights.h5', 'a.keras')
TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def keras() -> Any:
    """The module, 3 or 2.15."""
    try:
        return load_keras()
    except UserError as error:
        pytest.skip(f'real Keras is not here: {error}')


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tiny_state(), tmp_path / 'model.pth')


@pytest.fixture(scope='module')
def pixels() -> np.ndarray:
    """(1, 96, 128, 3), an input of both networks."""
    return np.random.RandomState(3).rand(1, 96, 128, 3).astype(np.float32)


def unset_model(checkpoint: Path, part: Part = 'model') -> Any:
    """The network in Keras, every variable NaN."""
    model = build_keras_model(network_shapes(read_checkpoint(checkpoint), part))
    unset(model)
    return model


def assert_variables(model: Any, state: dict[str, Tensor], part: Part = 'model') -> None:
    """Every variable of the Keras model is bit-equal to its tensor, and there is no other."""
    seen = 0
    for layer in model_layers(part):
        for key, values in zip(layer.tensors.values(), model.get_layer(layer.name).get_weights(), strict=True):
            expected = np.moveaxis(state[key].numpy(), (0, 1), (3, 2)) if values.ndim == 4 else state[key].numpy()
            assert values.dtype == np.float32 and values.tobytes() == np.ascontiguousarray(expected).tobytes(), key
            seen += 1
    assert seen == sum(len(layer.get_weights()) for layer in model.layers)


@pytest.mark.parametrize('name', LAYOUTS)
def test_keras_loads_the_model_and_computes_the_same(tmp_path, keras, checkpoint, pixels, name):
    export_keras(checkpoint, tmp_path / name)
    model = unset_model(checkpoint)
    model.load_weights(str(tmp_path / name))
    assert_variables(model, tiny_state())
    ours = torch_maps(read_checkpoint(checkpoint), pixels)
    for theirs, expected in zip(model.predict(pixels, verbose=0), ours, strict=True):
        assert theirs.shape == expected.shape and np.abs(theirs - expected).max() < TOLERANCE
    again = import_keras(tmp_path / name, tmp_path / 'again.pth', cfg_options=TINY_OPTIONS)
    assert again['found']['part'] == 'model'
    state = torch.load(tmp_path / 'again.pth')['state_dict']
    assert [key for key, value in tiny_state().items() if not torch.equal(value, state[key])] == []


@pytest.mark.parametrize('name', LAYOUTS)
def test_keras_loads_the_backbone(tmp_path, keras, checkpoint, name):
    export_keras(checkpoint, tmp_path / name, part='backbone')
    model = unset_model(checkpoint, 'backbone')
    model.load_weights(str(tmp_path / name))
    assert_variables(model, tiny_state(), 'backbone')


@pytest.mark.parametrize('name', ['a.h5', 'a.weights.h5'])
def test_keras_reads_float16_into_float32(tmp_path, keras, checkpoint, name):
    export_keras(checkpoint, tmp_path / name, dtype='float16')
    model = unset_model(checkpoint)
    model.load_weights(str(tmp_path / name))
    assert_variables(model, {key: value.half().float() for key, value in tiny_state().items()})


def test_keras_opens_the_archive_as_a_model(tmp_path, keras, checkpoint):
    report = export_keras(checkpoint, tmp_path / 'a.keras')
    assert f'written by Keras {keras.__version__}' in report['notes'][0]
    assert_variables(keras.models.load_model(str(tmp_path / 'a.keras')), tiny_state())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.keras', 'model.pth']


def test_keras_refuses_other_bridges(tmp_path, keras, checkpoint):
    """What the report's note warns of: the architecture's own widths for this many classes do not fit."""
    shapes = network_shapes(read_checkpoint(checkpoint), 'model')
    export_keras(checkpoint, tmp_path / 'a.h5')
    kernels = list(shapes.kernels)
    for index, width in ((55, 96), (60, 48), (65, 24)):
        kernels[index] = (*kernels[index][:3], width)
    predictions = tuple((1, 1, width, 12) for width in (96, 48, 24))
    with pytest.raises(ValueError, match=r'96|shape'):
        build_keras_model(type(shapes)(tuple(kernels), predictions)).load_weights(str(tmp_path / 'a.h5'))


def test_weights_file_is_the_one_this_keras_writes(tmp_path, keras, checkpoint):
    """To the type of every attribute; Keras 2 stores no names."""
    export_keras(checkpoint, tmp_path / 'ours.weights.h5')
    model = unset_model(checkpoint)
    model.load_weights(str(tmp_path / 'ours.weights.h5'))
    model.save_weights(str(tmp_path / 'theirs.weights.h5'))
    ours, theirs = listing(tmp_path / 'ours.weights.h5'), listing(tmp_path / 'theirs.weights.h5')
    if keras.__version__.startswith('2.') or not any(theirs[0].values()):  # no names before some Keras 3
        assert ours[0].keys() == theirs[0].keys()
    else:
        assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert [path for path in ours[1] if ours[1][path].tobytes() != theirs[1][path].tobytes()] == []


def test_legacy_attributes_are_of_the_types_keras_writes(tmp_path, keras, checkpoint):
    """Of the same model saved by this Keras as a whole ``.h5``."""
    export_keras(checkpoint, tmp_path / 'ours.h5')
    unset_model(checkpoint).save(str(tmp_path / 'theirs.h5'))
    ours, theirs = listing(tmp_path / 'ours.h5')[0], listing(tmp_path / 'theirs.h5')[0]
    for group, other in (('/', 'model_weights'), ('conv2d_3', 'model_weights/conv2d_3'), ('add', 'model_weights/add')):
        types = {key: kind for key, (kind, _) in theirs[other].items()}
        got = {key: kind for key, (kind, _) in ours[group].items()}
        assert got.keys() == types.keys()
        assert {key: kind[:2] for key, kind in got.items()} == {key: kind[:2] for key, kind in types.items()}


@pytest.mark.parametrize('name', ['keras2_model5_legacy.h5', 'keras3_model5_full.h5', 'keras3_model5.weights.h5',
                                  'keras3_model5.keras', 'keras2_darknet53.h5', 'keras3_darknet53.h5'])
def test_keras_agrees_with_what_is_imported(tmp_path, keras, pixels, name):
    part: Part = 'backbone' if 'darknet' in name else 'model'
    src = write_tiny(name, tmp_path / name)
    import_keras(src, tmp_path / 'a.pth', part=part, cfg_options=TINY_OPTIONS)
    equal, errors = compare_with_keras(src, tmp_path / 'a.pth', pixels)
    assert equal == dict(model=336, backbone=260)[part] and max(errors) < TOLERANCE


def test_keras_agrees_with_a_backbone_out_of_a_model_file(tmp_path, keras, pixels):
    src = write_tiny('keras3_model5.weights.h5', tmp_path / 'renamed.bin')
    import_keras(src, tmp_path / 'a.pth', part='backbone', cfg_options=TINY_OPTIONS)
    equal, errors = compare_with_keras(src, tmp_path / 'a.pth', pixels)
    assert equal == 260 and len(errors) == 3 and max(errors) < TOLERANCE


def test_keras_agrees_where_counters_are_shifted(tmp_path, keras, pixels):
    """Shifted counters load, for Keras goes by order; and a changed tensor is seen."""
    src = write(shifted(tiny('keras3_model5.weights.h5'), 66, 67), tmp_path / 'shifted.weights.h5')
    import_keras(src, tmp_path / 'a.pth', cfg_options=TINY_OPTIONS)
    equal, errors = compare_with_keras(src, tmp_path / 'a.pth', pixels)
    assert equal == 336 and max(errors) < TOLERANCE
    state = tiny_state()
    state['neck.blocks.0.conv1.conv.weight'] += 1
    equal, errors = compare_with_keras(src, save(state, tmp_path / 'b.pth'), pixels)
    assert equal == 335 and max(errors) > TOLERANCE
