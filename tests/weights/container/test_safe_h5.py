"""The reader of strangers' HDF5: what it reads exactly, and what it refuses."""
from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container import safe_h5, stored_array
from mgdet_plugin.weights.container.safe_h5 import SafeH5

VALUES = np.random.RandomState(0).standard_normal((7, 5)).astype(np.float32)


def made(path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, 'w') as h5:
        fill(h5)
    return path


def read(path: Path, name: str = '/x', shape: tuple[int, ...] = (7, 5)) -> np.ndarray:
    with path.open('rb') as stream, SafeH5(stream, path.name) as h5:
        return h5.read(name, shape)


def refusal(path: Path, name: str | None = None, shape: tuple[int, ...] = (7, 5)) -> str:
    """The one line with which a file, or the reading of one array of it, is refused."""
    with path.open('rb') as stream, pytest.raises(UserError) as caught:  # noqa: SIM117
        with SafeH5(stream, path.name) as h5:
            assert name is not None, 'the structure was accepted'
            h5.read(name, shape)
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('dtype', ['<f2', '>f2', '<f4', '>f4', '<f8', '>f8'])
def test_reads_every_float_as_float32(tmp_path, dtype):
    values = VALUES.astype(dtype)
    got = read(made(tmp_path / 'a.h5', lambda h5: h5.create_dataset('x', data=values)))
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, values.astype(np.float32))


def test_reads_bfloat16_as_keras_stores_it(tmp_path):
    upper = (VALUES.view(np.uint32) >> 16).astype('<u2')

    def fill(h5: h5py.File) -> None:
        h5.create_dataset('x', data=upper.view('V2')).attrs['dtype'] = 'bfloat16'
        h5.create_dataset('bare', data=upper.view('V2'))

    path = made(tmp_path / 'a.h5', fill)
    np.testing.assert_array_equal(read(path), (upper.astype(np.uint32) << 16).view(np.float32))
    assert 'opaque' in refusal(path, '/bare')


@pytest.mark.parametrize('options', [
    dict(),
    dict(compression='gzip'),
    dict(shuffle=True),
    dict(compression='gzip', shuffle=True),
])
def test_reads_chunks_that_do_not_divide_the_shape(tmp_path, options):
    path = made(tmp_path / 'a.h5', lambda h5: h5.create_dataset('x', data=VALUES, chunks=(3, 2), **options))
    np.testing.assert_array_equal(read(path), VALUES)


def test_lists_nested_arrays_and_groups_without_reading(tmp_path):
    def fill(h5: h5py.File) -> None:
        h5['a/b/x'] = VALUES
        h5['step'] = np.int64(3)

    with made(tmp_path / 'a.h5', fill).open('rb') as stream, SafeH5(stream, 'a.h5') as h5:
        assert h5.arrays['/a/b/x'].shape == (7, 5) and h5.arrays['/a/b/x'].dtype == 'float32'
        assert h5.arrays['/step'].shape == () and h5.arrays['/step'].dtype == 'integer'
        assert h5.groups == {'/', '/a', '/a/b'}


@pytest.mark.parametrize('value', [['a', 'bc'], np.array([b'a', b'bc']), np.array(['a', 'bc'], dtype=object)])
def test_reads_names_stored_as_bytes_and_as_text(tmp_path, value):
    path = made(tmp_path / 'a.h5', lambda h5: h5.attrs.__setitem__('layer_names', value))
    with path.open('rb') as stream, SafeH5(stream, 'a.h5') as h5:
        assert h5.texts('/', 'layer_names') == ['a', 'bc']
        assert h5.texts('/', 'other') is None and h5.texts('/absent', 'layer_names') is None


def test_joins_names_keras_split_over_attributes(tmp_path):
    def fill(h5: h5py.File) -> None:
        h5.attrs['layer_names0'], h5.attrs['layer_names1'] = [b'a', b'b'], [b'c']
        h5.create_group('g').attrs['weight_names'] = np.zeros(0)

    with made(tmp_path / 'a.h5', fill).open('rb') as stream, SafeH5(stream, 'a.h5') as h5:
        assert h5.texts('/', 'layer_names') == ['a', 'b', 'c']
        assert h5.texts('/g', 'weight_names') == []


def nest(h5: h5py.File, depth: int) -> None:
    h5['/'.join('g' * depth)] = VALUES


STRUCTURES: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    'soft link': (lambda h5: h5.__setitem__('s', h5py.SoftLink('/x')), 'link'),
    'dangling soft link': (lambda h5: h5.__setitem__('s', h5py.SoftLink('/nowhere')), 'link'),
    'external link': (lambda h5: h5.__setitem__('e', h5py.ExternalLink('/etc/passwd', '/x')), 'link'),
    'link in a group': (lambda h5: h5.create_group('g').__setitem__('e', h5py.ExternalLink('o.h5', '/x')), "'/g/e'"),
    'external storage': (lambda h5: h5.create_dataset('x', (5,), 'f4', external=[('/etc/passwd', 0, 20)]),
                         'other files'),
    'virtual': (lambda h5: h5.create_virtual_dataset('x', h5py.VirtualLayout((5,), 'f4')), 'other files'),
    'cycle': (lambda h5: h5.create_group('g').__setitem__('again', h5['/']), 'already reached'),
    'two names': (lambda h5: (h5.create_group('g').__setitem__('x', VALUES), h5.__setitem__('y', h5['g/x'])),
                  'already reached'),
    'too deep': (lambda h5: nest(h5, safe_h5.MAX_DEPTH + 1), 'deeper than 8'),
    'named type': (lambda h5: h5.__setitem__('t', np.dtype('f4')), 'neither a group nor an array'),
    'long name': (lambda h5: h5.create_group('n' * 1025), 'bad name'),
}


@pytest.mark.parametrize('kind', STRUCTURES)
def test_refuses_structure(tmp_path, kind):
    fill, cause = STRUCTURES[kind]
    assert cause in refusal(made(tmp_path / 'a.h5', fill))


def test_accepts_the_greatest_depth(tmp_path):
    path = made(tmp_path / 'a.h5', lambda h5: nest(h5, safe_h5.MAX_DEPTH))
    np.testing.assert_array_equal(read(path, '/' + '/'.join('g' * safe_h5.MAX_DEPTH)), VALUES)


def test_refuses_more_objects_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_h5, 'MAX_OBJECTS', 20)
    enough = made(tmp_path / 'a.h5', lambda h5: [h5.create_group(f'g/{index}') for index in range(19)])
    assert 'more than 20 objects' in refusal(made(tmp_path / 'b.h5', lambda h5: [h5.create_group(f'g/{index}')
                                                                                for index in range(20)]))
    with enough.open('rb') as stream, SafeH5(stream, 'a.h5') as h5:
        assert len(h5.groups) == 21


def never_written(h5: h5py.File) -> None:
    h5.create_dataset('x', (7, 5), 'f4')


def partly_written(h5: h5py.File) -> None:
    h5.create_dataset('x', (7, 5), 'f4', chunks=(3, 2))[:3, :2] = 1


def inflating(h5: h5py.File) -> None:
    """A chunk of 140 bytes that holds 100 KB when unpacked."""
    dataset = h5.create_dataset('x', (7, 5), 'f4', chunks=(7, 5), compression='gzip')
    packed = zlib.compress(bytes(10 ** 5))
    assert len(packed) < 200
    dataset.id.write_direct_chunk((0, 0), packed)


def unfiltered(h5: h5py.File) -> None:
    """A chunk marked as written without its filter."""
    dataset = h5.create_dataset('x', (7, 5), 'f4', chunks=(7, 5), compression='gzip')
    dataset.id.write_direct_chunk((0, 0), VALUES.tobytes(), filter_mask=1)


def oversized(h5: h5py.File) -> None:
    dataset = h5.create_dataset('x', (7, 5), 'f4', chunks=(7, 5), compression='gzip')
    dataset.id.write_direct_chunk((0, 0), zlib.compress(VALUES.tobytes()) + bytes(10_000))


ARRAYS: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    'integer': (lambda h5: h5.create_dataset('x', data=VALUES.astype('i4')), 'type integer'),
    'text': (lambda h5: h5.create_dataset('x', data=np.full((7, 5), b'a')), 'type string'),
    'compound': (lambda h5: h5.create_dataset('x', data=np.zeros((7, 5), [('a', 'f4')])), 'type compound'),
    'complex': (lambda h5: h5.create_dataset('x', data=VALUES.astype('c8')), 'of the type'),
    'long double': (lambda h5: h5.create_dataset('x', data=VALUES.astype(np.longdouble)), 'type unusual float'),
    'never written': (never_written, 'never written'),
    'chunks missing': (partly_written, 'never written'),
    'huge and empty': (lambda h5: h5.create_dataset('x', (2 ** 20, 2 ** 20), 'f4'), 'has the shape (1048576, 1048576)'),
    'checksum filter': (lambda h5: h5.create_dataset('x', data=VALUES, fletcher32=True), 'filters [3]'),
    'lzf filter': (lambda h5: h5.create_dataset('x', data=VALUES, compression='lzf'), 'filters [32000]'),
    'inflating chunk': (inflating, '141 bytes where 140 belong'),
    'unfiltered chunk': (unfiltered, 'damaged chunk at (0, 0)'),
    'oversized chunk': (oversized, 'damaged chunk at (0, 0)'),
    'null space': (lambda h5: h5.__setitem__('x', h5py.Empty('f4')), 'has the shape ()'),
    'transposed': (lambda h5: h5.__setitem__('x', VALUES.T), 'needed is (7, 5)'),
}


@pytest.mark.parametrize('kind', ARRAYS)
def test_refuses_to_read(tmp_path, kind):
    fill, cause = ARRAYS[kind]
    assert cause in refusal(made(tmp_path / 'a.h5', fill), '/x')


def test_unpacking_a_bomb_takes_no_memory():
    packed = zlib.compress(bytes(50 * 10 ** 6))
    tracemalloc.start()
    with pytest.raises(ValueError, match='1001 bytes where 1000 belong'):
        stored_array.undo_filters(packed, [h5py.h5z.FILTER_DEFLATE], 1000, 4)
    assert tracemalloc.get_traced_memory()[1] < 10 ** 6
    tracemalloc.stop()


def test_refuses_a_null_space_where_a_scalar_is_needed(tmp_path):
    path = made(tmp_path / 'a.h5', lambda h5: h5.__setitem__('x', h5py.Empty('f4')))
    assert 'never written' in refusal(path, '/x', ())


def test_refuses_too_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_array, 'MAX_CHUNKS', 8)
    path = made(tmp_path / 'a.h5', lambda h5: h5.create_dataset('x', data=VALUES, chunks=(3, 2)))
    assert '9 chunks' in refusal(path, '/x')


@pytest.mark.parametrize('value', [np.zeros(5), np.full(10_001, b'a'), np.full((2, 2), b'a'), np.array([b'a' * 1025]),
                                   ['a' * 1025]])
def test_refuses_names_that_are_none(tmp_path, value):
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w', libver='latest') as h5:  # the newer format allows attributes over 64 KB
        h5.attrs['layer_names'] = value
    with path.open('rb') as stream, SafeH5(stream, 'a.h5') as h5, pytest.raises(UserError, match='layer_names'):
        h5.texts('/', 'layer_names')


def test_truncation_at_any_point_is_refused(tmp_path):
    whole = made(tmp_path / 'a.h5', lambda h5: nest(h5, 4)).read_bytes()
    path = tmp_path / 'b.h5'
    for size in np.linspace(8, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:size])
        assert 'damaged or truncated' in refusal(path)
