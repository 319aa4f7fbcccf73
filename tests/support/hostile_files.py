"""Files a stranger could hand to the importer, each with the cause its refusal must name.

All are made from the valid small file of :mod:`tests.support.keras_files`, so that only the one thing is wrong with
them.
"""
from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from mgdet_plugin.weights.container.zip_member import MEMBER
from tests.support.keras_files import Tree, fill, numbers, tiny, tiny_bytes

SOURCE = 'keras3_model5_full.h5'
KERNEL = '/model_weights/conv2d_9/conv2d_9/kernel'
VARIANCE = '/model_weights/batch_normalization_9/batch_normalization_9/moving_variance'
LINK_MESSAGE = b'\x01\x08\x40\x01s'  # version, flags, type of link: external, length of its name, name
Make = Callable[[Path], object]
KINDS: dict[str, tuple[Make, str]] = {}


def kind(cause: str, name: str = '') -> Callable[[Make], Make]:
    """Enter a function that makes a file; ``cause`` is a part of the line that must refuse it."""

    def enter(make: Make) -> Make:
        KINDS[name or make.__name__.replace('_', ' ')] = (make, cause)
        return make

    return enter


def enter_content(name: str, content: Callable[[], bytes], cause: str) -> None:
    """Enter a file by its bytes."""
    KINDS[name] = (lambda path: path.write_bytes(content()), cause)


def enter_changed(name: str, change: Callable[[h5py.File], object], cause: str, libver: str = 'earliest') -> None:
    """Enter the valid file with something added."""

    def make(path: Path) -> None:
        with h5py.File(path, 'w', libver=libver) as h5:
            fill(tiny(SOURCE), h5)
            change(h5)

    KINDS[name] = (make, cause)


def enter_array(name: str, replace: Callable[[h5py.File, str, np.ndarray], object], cause: str,
                path_in_file: str = KERNEL) -> None:
    """Enter the valid file with one array stored in another way."""
    without = tiny(SOURCE)
    spec = without['datasets'].pop(path_in_file)

    def make(path: Path) -> None:
        with h5py.File(path, 'w') as h5:
            fill(without, h5)
            replace(h5, path_in_file, numbers(spec['layer'], spec['kind'], tuple(spec['shape'])))

    KINDS[name] = (make, cause)


def enter_tree(name: str, change: Callable[[Tree], object], cause: str) -> None:
    """Enter the file of a changed tree."""

    def make(path: Path) -> None:
        source = tiny(SOURCE)
        change(source)
        with h5py.File(path, 'w') as h5:
            fill(source, h5)

    KINDS[name] = (make, cause)


# Content that is no weights file
enter_content('empty', lambda: b'', 'is empty (0 bytes)')
enter_content('text', lambda: b'layer weights\n1 2 3\n', "text beginning 'layer weights'")
enter_content('error page', lambda: b'<!DOCTYPE html>\n<html><title>404</title>', "text beginning '<!DOCTYPE html>'")
enter_content('git-lfs pointer', lambda: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
              "text beginning 'version https://git-lfs")
enter_content('picture', lambda: b'\x89PNG\r\n\x1a\n' + bytes(100), 'begins with the bytes 89 50 4e 47')
enter_content('pickle', lambda: pickle.dumps(dict(weights=np.zeros(9)), 4), 'is a pickle, as old PyTorch files are')
enter_content('HDF5 signature alone', lambda: tiny_bytes(SOURCE)[:8], 'damaged or truncated HDF5')
enter_content('signature and noise', lambda: tiny_bytes(SOURCE)[:8] + np.random.RandomState(0).bytes(9000),
              'damaged or truncated HDF5')


@kind('is a directory')
def directory(path: Path) -> None:
    path.mkdir()


@kind('not a regular file')
def pipe(path: Path) -> None:
    os.mkfifo(path)


@kind('not a regular file')
def device(path: Path) -> None:
    path.symlink_to('/dev/zero')


@kind('cannot be opened: Too many levels of symbolic links')
def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


@kind('does not exist')
def missing(path: Path) -> None:
    """Nothing there."""


@kind('PyTorch checkpoint')
def torch_checkpoint(path: Path) -> None:
    torch.save(dict(state_dict={}), path)


@kind(f'0 members named {MEMBER}')
def numpy_archive(path: Path) -> None:
    with path.open('wb') as stream:
        np.savez(stream, kernel=np.zeros(9))


# Links, and data kept elsewhere
enter_changed('soft link', lambda h5: h5.__setitem__('s', h5py.SoftLink(KERNEL)), 'soft, external or user-defined link')
enter_changed('external link', lambda h5: h5.__setitem__('s', h5py.ExternalLink('/etc/passwd', '/x')),
              'soft, external or user-defined link')
enter_array('soft link to a weight', lambda h5, at, _: h5.__setitem__(at, h5py.SoftLink(KERNEL.replace('9', '8'))),
            'soft, external or user-defined link')
enter_array('external storage', lambda h5, at, x: h5.create_dataset(
    at, x.shape, x.dtype, external=[('/etc/passwd', 0, x.nbytes)]), 'external or virtual storage')
enter_array('virtual dataset', lambda h5, at, x: h5.create_virtual_dataset(at, h5py.VirtualLayout(x.shape, 'f4')),
            'external or virtual storage')


@kind('soft, external or user-defined link')
def user_defined_link(path: Path) -> None:
    KINDS['external link'][0](path)
    content = path.read_bytes()
    assert content.count(LINK_MESSAGE) == 1
    path.write_bytes(content.replace(LINK_MESSAGE, b'\x01\x08\x64\x01s'))


# Structure without measure
enter_changed('cycle', lambda h5: h5['model_weights'].__setitem__('again', h5['/']), 'already reached')
enter_changed('two names for one array', lambda h5: h5.__setitem__('again', h5[KERNEL]), 'already reached')
enter_changed('deep', lambda h5: h5.create_group('/'.join('g' * 60)), 'deeper than 8')
enter_changed('ten thousand objects', lambda h5: [h5py.h5g.create(h5.id, b'g%d' % index) for index in range(10_001)],
              'more than 10,000 objects')
enter_changed('long name', lambda h5: h5.create_group('n' * 5_000), 'bad name')
enter_changed('named type', lambda h5: h5.__setitem__('t', np.dtype('f4')), 'neither a group nor an array')
enter_changed('thirty axes', lambda h5: h5.create_dataset('x', (1,) * 30, 'f4'), '30 axes')
enter_changed('huge attribute', lambda h5: h5['model_weights/conv2d_9'].attrs.__setitem__(
    'weight_names', np.full(2_000_000, b'a' * 16)), 'not a list of at most 10,000 names', libver='latest')


@kind('the HDF5 library ended on it')
def loop_in_an_index(path: Path) -> None:
    """A node of a group's index that is its own child: the HDF5 library runs out of stack and crashes."""
    with h5py.File(path, 'w') as h5:
        fill(tiny(SOURCE), h5)
        for index in range(300):
            h5.create_group(f'many/{index}')
    raw = path.read_bytes()
    node = raw.rindex(b'TREE\0\1')  # over other nodes
    path.write_bytes(raw[:node + 32] + struct.pack('<Q', node) + raw[node + 40:])


def references(h5: h5py.File) -> None:
    """4,000 entries of one attribute that all refer to the same megabyte of text."""
    texts = ['a' * 2 ** 20] + ['b'] * 3_999
    h5['model_weights/conv2d_9'].attrs['weight_names'] = np.array(texts, dtype=object)


@kind('damaged or truncated HDF5')  # the process that lists it has no memory for that
def attribute_of_references(path: Path) -> None:
    with h5py.File(path, 'w') as h5:
        fill(tiny(SOURCE), h5)
        references(h5)
    raw = bytearray(path.read_bytes())
    first = raw.find(struct.pack('<I', 2 ** 20))
    while first >= 0 and raw[first + 16:first + 20] != struct.pack('<I', 1):
        first = raw.find(struct.pack('<I', 2 ** 20), first + 1)
    raw[first:first + 64_000] = bytes(raw[first:first + 16]) * 4_000
    path.write_bytes(raw)


# Arrays that are not what they should be
for dtype, named in ((np.int32, 'integer'), ('S4', 'string'), ([('a', 'f4')], 'compound'), (np.longdouble, 'unusual'),
                     ('V2', 'opaque'), (np.complex64, '')):
    enter_array(f'array of {np.dtype(dtype)}', lambda h5, at, x, dtype=dtype: h5.create_dataset(  # type: ignore[misc]
        at, data=np.zeros(x.shape, dtype)), f'of the type {named}')
enter_array('one array big-endian', lambda h5, at, x: h5.create_dataset(at, data=x.astype('>f4')),
            'another byte order')
enter_array('4 TiB declared', lambda h5, at, x: h5.create_dataset(at, (2 ** 20, 2 ** 10, 2 ** 5, 2 ** 5), 'f4'),
            'conv2d_9')
enter_array('4 TiB declared in chunks', lambda h5, at, x: h5.create_dataset(
    at, (2 ** 20, 2 ** 10, 2 ** 5, 2 ** 5), 'f4', chunks=(2 ** 10, 2 ** 10, 1, 1)), 'conv2d_9')
enter_array('never written', lambda h5, at, x: h5.create_dataset(at, x.shape, 'f4'), 'never written')
enter_array('chunks missing', lambda h5, at, x: h5.create_dataset(at, x.shape, 'f4', chunks=(1, *x.shape[1:]))
            .__setitem__(0, x[0]), 'never written')
enter_array('checksum filter', lambda h5, at, x: h5.create_dataset(at, data=x, fletcher32=True), 'filters [3]')
enter_array('lzf filter', lambda h5, at, x: h5.create_dataset(at, data=x, compression='lzf'), 'filters [32000]')
enter_array('scale-offset filter', lambda h5, at, x: h5.create_dataset(at, data=x, scaleoffset=3), 'filters [6]')
enter_array('null space', lambda h5, at, x: h5.__setitem__(at, h5py.Empty('f4')), '65 convolutions')
enter_array('transposed', lambda h5, at, x: h5.__setitem__(at, x.transpose(3, 2, 0, 1).copy()), 'conv2d_9')
enter_array('NaN', lambda h5, at, x: h5.__setitem__(at, np.where(x == x.max(), np.nan, x).astype('f4')), 'NaN')
enter_array('infinity', lambda h5, at, x: h5.__setitem__(at, np.where(x == x.max(), np.inf, x).astype('f4')),
            'infinite')
enter_array('float64 beyond float32', lambda h5, at, x: h5.__setitem__(at, x.astype('f8') * 1e300), 'infinite')
enter_array('negative variance', lambda h5, at, x: h5.__setitem__(at, -x), 'negative variance', VARIANCE)


def bomb(size: int) -> Callable[[h5py.File, str, np.ndarray], object]:
    """A chunk that unpacks to ``size`` zero bytes."""

    def replace(h5: h5py.File, at: str, values: np.ndarray) -> None:
        dataset = h5.create_dataset(at, values.shape, 'f4', chunks=values.shape, compression='gzip')
        dataset.id.write_direct_chunk((0,) * values.ndim, zlib.compress(bytes(size), 9))

    return replace


enter_array('chunk that inflates', bomb(10 ** 6), 'bytes where')
enter_array('chunk that is too large', bomb(10 ** 8), 'damaged chunk')


# Networks that are another one
def without_norm(source: Tree) -> None:
    group = VARIANCE.rpartition('/')[0].rpartition('/')[0]
    source['groups'] = {path: attrs for path, attrs in source['groups'].items() if not path.startswith(f'{group}/')
                        and path != group}
    source['datasets'] = {path: spec for path, spec in source['datasets'].items() if not path.startswith(f'{group}/')}
    source['groups']['/model_weights']['layer_names'].remove('batch_normalization_9')


def vgg() -> Tree:
    """VGG16 at a sixteenth of its width: 13 convolutions with bias and three dense layers."""
    widths = [4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32]
    names = [f'block{index}_conv' for index in range(13)] + ['fc1', 'fc2', 'predictions']
    shapes: list[tuple[int, ...]] = [(3, 3, ins, outs) for ins, outs in zip([3, *widths], widths, strict=False)]
    shapes += [(32, 64), (64, 64), (64, 10)]
    source: Tree = dict(groups={'/': dict(layer_names=list(names), keras_version='2.1.1')}, datasets={})
    for name, shape in zip(names, shapes, strict=True):
        source['groups'][f'/{name}'] = dict(weight_names=[f'{name}/kernel:0', f'{name}/bias:0'])
        source['datasets'][f'/{name}/{name}/kernel:0'] = dict(shape=list(shape), layer=name, kind='kernel')
        source['datasets'][f'/{name}/{name}/bias:0'] = dict(shape=[shape[-1]], layer=name, kind='bias')
    return source


enter_tree('a normalisation missing', without_norm, '65 batch normalisations')
enter_tree('a layer twice', lambda source: source['groups']['/model_weights']['layer_names'].append('conv2d_9'),
           'twice')
enter_tree('a weight twice', lambda source: source['groups']['/model_weights/conv2d_9']['weight_names'].append(
    'conv2d_9/kernel'), 'conv2d_9')
enter_tree('VGG', lambda source: source.update(vgg()), '13 convolutions with bias')
