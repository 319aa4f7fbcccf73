"""The map of a file: damage to an address leaves a trace, and what Keras and h5py write has none."""
from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from itertools import pairwise

import h5py
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container import file_map
from mgdet_plugin.weights.container.file_map import FileMap, check_attribute, check_file_map, check_filters
from mgdet_plugin.weights.container.safe_h5 import SafeH5
from mgdet_plugin.weights.container.stored_array import Block
from tests.support.keras_files import BACKBONE_TREES, MODEL_TREES, fill, numbers, tiny, with_optimizer, write

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


@pytest.mark.parametrize('name', MODEL_TREES + BACKBONE_TREES)
@pytest.mark.parametrize('as_text', [False, True])
def test_files_of_keras_have_a_whole_map(name, as_text):
    raw = content(lambda h5: fill(with_optimizer(tiny(name)), h5, as_text))
    with SafeH5(io.BytesIO(raw), 'a.h5') as h5:
        found = FileMap(io.BytesIO(raw))
        found.follow(h5._headers)
        assert found.complete and len(found.spans) > len(h5.arrays)
        assert all(end <= start for (_, end), (start, _) in pairwise(sorted(found.spans)))


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


@pytest.mark.parametrize('shift', [-8, 8, 1, 160, -160, -700])
def test_refuses_a_moved_array(shift):
    raw = content(two)
    line = refusal(moved(raw, '/a', addresses(raw)['/a'] + shift))
    assert 'overlap' in line or 'belongs to nothing' in line


def test_refuses_an_array_in_free_space_by_what_it_leaves_behind():
    """Here nothing overlaps: the zeros lie between structure and data."""
    def write(h5: h5py.File) -> None:
        h5.attrs['text'] = np.zeros(300, '<f4')
        two(h5)
        del h5.attrs['text']

    raw = content(write)
    with SafeH5(io.BytesIO(raw), 'a.h5') as h5:
        found = FileMap(io.BytesIO(raw))
        found.follow(h5._headers)
        taken = sorted([*found.spans, *((block.address, block.address + block.size)
                                        for array in h5.arrays.values() for block in array.storage.blocks)])
    holes = [(end, start) for (_, end), (start, _) in pairwise(taken) if start - end >= VALUES.nbytes]
    assert holes, 'the file has no free space to try'
    assert 'belongs to nothing' in refusal(moved(raw, '/a', holes[0][0]))


def test_refuses_two_arrays_in_one_place_and_beyond_the_end():
    raw = content(two)
    assert 'overlap' in refusal(moved(raw, '/a', addresses(raw)['/b']))
    assert 'overlap' in refusal(moved(raw, '/b', addresses(raw)['/a']))
    for address in (len(raw) - 100, len(raw), 2 ** 63):
        assert 'damaged' in refusal(moved(raw, '/a', address))
        with pytest.raises(UserError, match='of a file of'):
            check_file_map(io.BytesIO(raw), [], [Block(address, VALUES.nbytes)], 'a.h5')


def test_says_what_lies_after_the_end():
    raw = content(two)
    with SafeH5(io.BytesIO(raw + bytes(5000)), 'a.h5') as h5:
        assert len(h5.arrays) == 2 and h5.warnings == []
    with SafeH5(io.BytesIO(raw + bytes(5000) + b'x' * 16), 'a.h5') as h5:
        assert len(h5.arrays) == 2 and '16 bytes of data belong to nothing' in h5.warnings[0]


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


@pytest.mark.parametrize('edit, leaves_data', [(delete_optimizer, True), (rename_layers, True), (replace_arrays, False),
                                               (remove_attributes, True)])
def test_edited_files_are_read_and_said_to_be(tmp_path, edit, leaves_data):
    """What h5py leaves behind in a file that is edited is data that belongs to nothing."""
    source = with_optimizer(tiny('keras2_model5_full.h5'))
    with h5py.File(write(source, tmp_path / 'a.h5'), 'r+') as h5:
        edit(h5)
    with (tmp_path / 'a.h5').open('rb') as stream, SafeH5(stream, 'a.h5') as found:
        assert [('it was edited' in line) for line in found.warnings] == [True] * leaves_data
        for layer, kind in (('conv2d_3', 'kernel'), ('conv2d_4', 'kernel'), ('batch_normalization_3', 'beta')):
            name = f'{layer}_old' if edit is rename_layers else layer
            array = found.arrays[f'/model_weights/{name}/{name}/{kind}:0']
            np.testing.assert_array_equal(found.read(array.path, array.shape), numbers(layer, kind, array.shape))


def test_refuses_a_filter_turned_into_another_message():
    """Without its shuffle filter the bytes of an array would be numbers of their own."""
    raw = content(lambda h5: h5.create_dataset('a', data=VALUES, chunks=True, shuffle=True))
    at = raw.index(b'shuffle') - 24  # the message before its name: type, size, flags, version
    assert raw[at:at + 2] == b'\x0b\0'
    for kind in set(range(256)) - {11}:
        damaged = bytearray(raw)
        damaged[at] = kind
        refusal(damaged)
    damaged = bytearray(raw)
    damaged[at + 9] = 0  # how many filters
    assert 'list of filters' in refusal(damaged)


def test_filters_and_attributes_by_hand():
    shuffle = struct.pack('<BB6x', 1, 1) + struct.pack('<4H8sI4x', 2, 8, 1, 1, b'shuffle\0', 4)
    check_filters(shuffle)
    for damaged in (shuffle[:-8], shuffle + b'\1', struct.pack('<BB6x', 1, 0), shuffle[:1] + b'\2' + shuffle[2:]):
        with pytest.raises(ValueError, match=r'filters|too early'):
            check_filters(damaged)
    text = bytes([0x19]) + bytes(15)  # variable length
    space = struct.pack('<BBB5xQ', 1, 1, 0, 3)
    head = struct.pack('<BBHHH', 1, 0, 8, len(text), len(space)) + b'names\0\0\0' + text + space
    check_attribute(head + struct.pack('<IQI', 99, 800, 1) * 3)
    with pytest.raises(ValueError, match='bytes of text'):
        check_attribute(head + struct.pack('<IQI', 2 ** 19, 800, 1) * 3)
    with pytest.raises(ValueError, match='damaged attribute'):
        check_attribute(head[:20])


def test_refuses_free_space_without_measure(monkeypatch):
    monkeypatch.setattr(file_map, 'MAX_FREE', 10_000)
    assert 'more than 10,000 bytes of the file belong to nothing' in refusal(content(two) + bytes(20_000))
