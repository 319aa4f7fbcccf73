"""Where arrays lie: what overlaps or reaches beyond the file is refused, and what Keras and h5py write is not."""
from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import replace

import h5py
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.safe_h5 import SafeH5
from tests.support.keras_files import numbers, tiny, with_optimizer, write

VALUES = np.arange(1, 41, dtype='<f4')


def content(write: Callable[[h5py.File], object], **options: object) -> bytearray:
    buffer = io.BytesIO()
    with h5py.File(buffer, 'w', **options) as h5:
        write(h5)
    return bytearray(buffer.getvalue())


def two(h5: h5py.File) -> None:
    h5['a'], h5['b'] = VALUES, VALUES + 100


def refusal(raw: bytes | bytearray) -> str:
    with pytest.raises(UserError) as caught, SafeH5(io.BytesIO(raw), 'a.h5'):
        raise AssertionError('accepted')
    assert '\n' not in str(caught.value)
    return str(caught.value)


def addresses(raw: bytearray) -> dict[str, int]:
    with SafeH5(io.BytesIO(raw), 'a.h5') as h5:
        return {path: array.storage.blocks[0].address for path, array in h5.arrays.items()}


def moved(raw: bytearray, path: str, address: int) -> bytearray:
    """The file with another address for one array."""
    old = struct.pack('<2Q', addresses(raw)[path], VALUES.nbytes)
    assert raw.count(old) == 1
    return bytearray(raw.replace(old, struct.pack('<2Q', address, VALUES.nbytes)))


@pytest.mark.parametrize('options', [dict(libver='latest'), dict(libver='v108'), dict(track_order=True),
                                     dict(fs_strategy='page'), dict(fs_strategy='none')])
@pytest.mark.parametrize('chunks', [None, True])
def test_other_forms_of_hdf5_are_read(tmp_path, options, chunks):
    def write(h5: h5py.File) -> None:
        for index in range(40):
            dataset = h5.create_dataset(f'group{index % 3}/x{index}', data=VALUES + index, chunks=chunks)
            dataset.attrs['dtype'] = 'float32'
        for index in range(20):  # enough for dense storage
            h5.attrs[f'text{index}'] = 'a' * 100

    with h5py.File(tmp_path / 'a.h5', 'w', **options) as h5:
        write(h5)
    with (tmp_path / 'a.h5').open('rb') as stream, SafeH5(stream, 'a.h5') as h5:
        assert len(h5.arrays) == 40
        np.testing.assert_array_equal(h5.read('/group1/x7', (40,)), VALUES + 7)


def test_an_edited_file_is_read_while_it_leaves_nothing_behind():
    raw = content(two)
    buffer = io.BytesIO(raw)
    with h5py.File(buffer, 'r+') as h5:
        h5['a'][0] = 7
        h5['c'] = VALUES
        h5.attrs['x'] = 'y'
    with SafeH5(io.BytesIO(buffer.getvalue()), 'a.h5') as h5:
        assert h5.read('/a', (40,))[0] == 7


@pytest.mark.parametrize('shift', [-8, -160])
def test_refuses_a_moved_array(shift):
    raw = content(two)
    assert 'overlap' in refusal(moved(raw, '/a', addresses(raw)['/a'] + shift))


def test_refuses_two_arrays_in_one_place_and_beyond_the_end():
    raw = content(two)
    assert 'overlap' in refusal(moved(raw, '/a', addresses(raw)['/b']))
    assert 'overlap' in refusal(moved(raw, '/b', addresses(raw)['/a']))
    for address in (len(raw) - 100, len(raw), 2 ** 63):
        assert 'damaged' in refusal(moved(raw, '/a', address))


def test_says_where_an_array_beyond_the_end_lies():
    """HDF5 itself refuses most of them; the rest would read what follows the file."""
    raw = content(two)
    with SafeH5(io.BytesIO(raw), 'a.h5') as h5:
        array = h5.arrays['/a']
        block = replace(array.storage.blocks[0], address=len(raw) - 100)
        h5.arrays['/a'] = replace(array, storage=replace(array.storage, blocks=(block,)))
        with pytest.raises(UserError, match=f'of a file of {len(raw):,}'):
            h5._check_places()


@pytest.mark.parametrize('more', [bytes(5000), bytes(5000) + b'x' * 16])
def test_what_lies_after_the_end_does_not_matter(more):
    with SafeH5(io.BytesIO(content(two) + more), 'a.h5') as h5:
        assert len(h5.arrays) == 2


def delete_optimizer(h5: h5py.File) -> None:
    del h5['optimizer_weights']


def rename_layers(h5: h5py.File) -> None:
    """As people do to make a loader by name find them: the group, its subgroup and all names."""
    def renamed(name: str) -> str:
        return re.sub(r'^(conv2d|batch_normalization)(_\d+)?$', r'\1\2_old', name)

    root = h5['model_weights']
    names = [name.decode() for name in root.attrs['layer_names']]
    for name in names:
        if renamed(name) != name:
            root[name].move(name, renamed(name))
            root.move(name, renamed(name))
            group = root[renamed(name)]
            group.attrs['weight_names'] = [each.decode().replace(name, renamed(name)).encode()
                                           for each in group.attrs['weight_names']]
    root.attrs['layer_names'] = [renamed(name).encode() for name in names]


def replace_arrays(h5: h5py.File) -> None:
    for path in ('conv2d_3/conv2d_3/kernel:0', 'batch_normalization_3/batch_normalization_3/beta:0'):
        values = h5['model_weights'][path][...]
        del h5['model_weights'][path]
        h5['model_weights'][path] = values


def remove_attributes(h5: h5py.File) -> None:
    h5.attrs['training_config'] = 'adam' * 200
    h5.flush()
    del h5.attrs['training_config']
    h5['model_weights'].attrs['backend'] = 'torch'


@pytest.mark.parametrize('edit', [delete_optimizer, rename_layers, replace_arrays, remove_attributes])
def test_edited_files_are_read(tmp_path, edit):
    source = with_optimizer(tiny('keras2_model5_full.h5'))
    with h5py.File(write(source, tmp_path / 'a.h5'), 'r+') as h5:
        edit(h5)
    with (tmp_path / 'a.h5').open('rb') as stream, SafeH5(stream, 'a.h5') as found:
        for layer, kind in (('conv2d_3', 'kernel'), ('conv2d_4', 'kernel'), ('batch_normalization_3', 'beta')):
            name = f'{layer}_old' if edit is rename_layers else layer
            array = found.arrays[f'/model_weights/{name}/{name}/{kind}:0']
            np.testing.assert_array_equal(found.read(array.path, array.shape), numbers(layer, kind, array.shape))
