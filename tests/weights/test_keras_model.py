"""The network built in Keras: the structure Keras itself recorded, and one clear line where Keras is missing."""
from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.keras_model import NetworkShapes, build_keras_model, load_keras
from mgdet_plugin.weights.mapping.layout import resolve_layers
from tests.support.keras_files import Listing, root_of, tiny
from tests.support.keras_resolving import shapes_of
from tests.support.keras_versions import tiny_shapes

needs_keras = pytest.mark.skipif(importlib.util.find_spec('keras') is None,
                                 reason="Keras is not installed: pip install 'mgdet[keras]'")


def recorded(kind: str) -> str:
    """Name of the recorded file of a kind for the major version of the Keras that is installed."""
    return f'keras{load_keras().__version__[0]}_{kind}'


def test_shapes_come_out_of_a_file():
    for name in ('keras3_model5.weights.h5', 'keras2_model5_legacy.h5'):
        assert shapes_of(resolve_layers(Listing(tiny(name)))) == tiny_shapes()  # type: ignore[arg-type]
    backbone = shapes_of(resolve_layers(Listing(tiny('keras2_darknet53.h5'))))  # type: ignore[arg-type]
    assert backbone == NetworkShapes(tiny_shapes().kernels[:52], ())


def test_a_missing_keras_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'keras', None)
    with pytest.raises(UserError, match=r"pip install 'mgdet\[keras\]' and set KERAS_BACKEND=torch") as caught:
        build_keras_model(tiny_shapes())
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('tensorflow, given, expected', [(False, None, 'torch'), (False, 'jax', 'jax'),
                                                         (True, None, None), (True, 'torch', 'torch')])
def test_torch_is_the_backend_only_where_nothing_else_is_chosen(monkeypatch, tensorflow, given, expected):
    monkeypatch.delitem(sys.modules, 'keras', raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if tensorflow else None)
    monkeypatch.setattr(importlib, 'import_module', lambda name: name)
    monkeypatch.setenv('KERAS_BACKEND', given or '')
    if given is None:
        monkeypatch.delenv('KERAS_BACKEND')
    assert load_keras() == 'keras'
    assert os.environ.get('KERAS_BACKEND') == expected


@pytest.mark.parametrize('kernels, predictions', [(65, 3), (66, 0), (52, 3), (66, 2), (0, 0)])
def test_refuses_numbers_of_kernels_no_network_has(kernels, predictions):
    shapes = tiny_shapes()
    with pytest.raises(ValueError, match=f'got {kernels} and {predictions}'):
        build_keras_model(NetworkShapes(shapes.kernels[:kernels], shapes.predictions[:predictions]))


@needs_keras
@pytest.mark.parametrize('place, kernel', [(0, (3, 3, 4, 2)), (10, (3, 3, 4, 9)), (57, (1, 1, 41, 8))])
def test_refuses_kernels_that_do_not_fit(place, kernel):
    kernels = list(tiny_shapes().kernels)
    kernels[place] = kernel
    with pytest.raises(ValueError):
        build_keras_model(NetworkShapes(tuple(kernels), tiny_shapes().predictions))


@needs_keras
@pytest.mark.parametrize('part, kind', [('model', 'model5_full.h5'), ('backbone', 'darknet53.h5')])
def test_layers_are_those_keras_recorded(part, kind):
    """Twice, as names must not depend on what was built before."""
    shapes = tiny_shapes() if part == 'model' else NetworkShapes(tiny_shapes().kernels[:52], ())
    source = tiny(recorded(kind))
    names = source['groups'][root_of(source) or '/']['layer_names']
    for _ in range(2):
        assert [layer.name for layer in build_keras_model(shapes).layers] == names


@needs_keras
def test_a_written_file_has_the_recorded_structure(tmp_path: Path):
    name = recorded('model5.weights.h5')
    source = tiny(name)
    build_keras_model(tiny_shapes()).save_weights(str(tmp_path / name))
    groups: dict[str, dict[str, object]] = {'/': {}}
    arrays: dict[str, list[int]] = {}

    def note(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[f'/{path}'] = list(item.shape)
        else:
            groups[f'/{path}'] = dict(item.attrs)

    with h5py.File(tmp_path / name) as h5:
        h5.visititems(note)
    assert arrays == {path: spec['shape'] for path, spec in source['datasets'].items()}
    assert groups == source['groups']


@needs_keras
@pytest.mark.parametrize('part', ['model', 'backbone'])
def test_outputs_come_in_the_stated_order(part):
    shapes = tiny_shapes() if part == 'model' else NetworkShapes(tiny_shapes().kernels[:52], ())
    outputs = build_keras_model(shapes)(np.zeros((2, 96, 64, 3), np.float32))
    expected = [(2, 3, 2, 12), (2, 6, 4, 12), (2, 12, 8, 12)]
    assert [tuple(output.shape) for output in outputs] \
        == (expected if part == 'model' else [(2, 12, 8, 16), (2, 6, 4, 32), (2, 3, 2, 64)])
