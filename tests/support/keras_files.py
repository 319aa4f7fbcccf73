"""Keras weights files for tests, made from recorded structures and generated numbers.

A tree is the structure of a file Keras itself wrote: its groups with their attributes, and for every array its shape
and the layer and weight whose generated numbers fill it. The numbers are a pure function of layer and weight, so every
layout of one network holds the same ones and gives the outputs recorded in ``data/keras/outputs_416.npz``.
"""
from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from mgdet_plugin.weights.container.stored_array import StoredArray

DATA = Path(__file__).parents[1] / 'data' / 'keras'
MODEL_TREES = ('keras2_model5_legacy.h5', 'keras2_model5_full.h5', 'keras2_model5.weights.h5', 'keras2_model5.keras',
               'keras3_model5_full.h5', 'keras3_model5.weights.h5', 'keras3_model5.keras')
BACKBONE_TREES = ('keras2_darknet53.h5', 'keras3_darknet53.h5')
NAMED_TREES = tuple(name for name in MODEL_TREES if name not in ('keras2_model5.weights.h5', 'keras2_model5.keras'))
UNIFORM = dict(bias=(-.5, .5), gamma=(.45, .9), beta=(-.3, .3), moving_mean=(-.2, .2), moving_variance=(.5, 1.5))
BFLOAT16 = np.dtype('V2')
NORM_KINDS = ('gamma', 'beta', 'moving_mean', 'moving_variance')

TINY_DIVISOR = 16
TINY_CLASSES = 4
# The model of `tiny`: a sixteenth of every width, four classes.
TINY_OPTIONS: dict[str, Any] = {
    'model.backbone.type': 'ScaledDarknet',
    'model.backbone.widen_factor': 1 / TINY_DIVISOR,
    'model.neck.in_channels': (64, 32, 16),
    'model.neck.out_channels': (16, 8, 4),
    'model.bbox_head.in_channels': (16, 8, 4),
    'model.bbox_head.num_classes': TINY_CLASSES,
    'model.bbox_head.bridge_channels': (44, 22, 11),
}

Tree = dict[str, dict[str, Any]]  # 'groups': path -> attributes; 'datasets': path -> shape, layer, kind


@cache
def numbers(layer: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 numbers of one weight of one layer."""
    rng = np.random.RandomState(zlib.crc32(f'{layer}/{kind}'.encode()))
    if kind == 'kernel':
        spread = np.sqrt(1.5 / prod(shape[:-1]))
        return (rng.standard_normal(shape) * spread).astype(np.float32)
    values: np.ndarray = rng.uniform(*UNIFORM[kind], shape).astype(np.float32)
    return values


def stored_numbers(spec: dict[str, Any]) -> np.ndarray:
    """What a file holds for one array of a tree: its numbers in the type of ``spec['stored']``, float32 by default."""
    if spec['kind'] == 'step':
        return np.array(7, np.int64)
    values = numbers(spec['layer'], spec['kind'], tuple(spec['shape']))
    stored = spec.get('stored', 'float32')
    if stored == 'bfloat16':  # the upper half of a float32; h5py writes it as opaque bytes, as Keras does
        return (values.view(np.uint32) >> 16).astype('<u2').view(BFLOAT16)
    return values.astype(stored)


def tree(name: str) -> Tree:
    """The recorded structure of a file, full size."""
    content: Tree = json.loads(gzip.decompress((DATA / f'{name}.json.gz').read_bytes()))
    return content


def tiny(name: str) -> Tree:
    """The recorded structure with every width divided by 16 and four classes, about 200 KB of weights."""
    small = tree(name)
    for spec in small['datasets'].values():
        *kernel, outputs = spec['shape']
        if spec['layer'].startswith('predict'):
            outputs = 5 + 3 + TINY_CLASSES
        else:
            outputs //= TINY_DIVISOR
        if len(kernel) == 3 and kernel[2] != 3:
            kernel[2] //= TINY_DIVISOR
        spec['shape'] = [*kernel, outputs]
    return small


def renamed(source: Tree, rename: Callable[[str], str]) -> Tree:
    """The tree with layers renamed wherever their names are stored; arrays keep their numbers and places in order."""
    changed: Tree = dict(groups={}, datasets={})

    def path_renamed(path: str) -> str:
        return path if path.startswith('/layers') else '/'.join(map(rename, path.split('/')))

    for path, attrs in source['groups'].items():
        attrs = deepcopy(attrs)
        if 'layer_names' in attrs:
            attrs['layer_names'] = [rename(name) for name in attrs['layer_names']]
        if 'weight_names' in attrs:
            attrs['weight_names'] = [path_renamed(name) for name in attrs['weight_names']]
        if 'name' in attrs:
            attrs['name'] = rename(attrs['name'])
        changed['groups'][path_renamed(path)] = attrs
    changed['datasets'] = {path_renamed(path): dict(spec) for path, spec in source['datasets'].items()}
    return changed


def shifted(source: Tree, convs: int, norms: int) -> Tree:
    """The tree as written when earlier models had moved Keras' counters."""
    offsets = dict(conv2d=convs, batch_normalization=norms)

    def rename(name: str) -> str:
        match = re.fullmatch(r'(conv2d|batch_normalization)(?:_(\d+))?', name)
        return f'{match[1]}_{int(match[2] or 0) + offsets[match[1]]}' if match else name

    return renamed(source, rename)


def swapped_names(source: Tree, one: str, other: str) -> Tree:
    """The tree with the names of two layers exchanged, each staying in its place."""
    return renamed(source, lambda name: {one: other, other: one}.get(name, name))


def root_of(source: Tree) -> str:
    """Path of the group with ``layer_names``, '' for the root; for legacy layouts."""
    return '/model_weights' if '/model_weights' in source['groups'] else ''


def with_optimizer(source: Tree) -> Tree:
    """The tree as a training checkpoint: the optimizer's moments and an integer step count, some as Keras files do."""
    top = '/optimizer/vars' if '/layers' in source['groups'] else '/optimizer_weights/Adam'
    changed = deepcopy(source)
    changed['datasets'][f'{top}/0'] = dict(shape=[], layer='step', kind='step')
    for index, spec in enumerate(source['datasets'].values(), 1):
        changed['datasets'][f'{top}/{index}'] = dict(spec)
    return changed


def write(source: Tree, path: Path, as_text: bool = False) -> Path:
    """Fill a tree and write it; a name ending in ``.keras`` makes an archive.

    Args:
        source: The tree.
        path: File to write.
        as_text: Store names as str, of variable length, in place of bytes; Keras writes either.
    """
    if path.suffix != '.keras':
        with h5py.File(path, 'w') as h5:
            fill(source, h5, as_text)
        return path
    inner = io.BytesIO()
    with h5py.File(inner, 'w') as h5:
        fill(source, h5, as_text)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('metadata.json', '{"keras_version": "3.15.1"}')
        archive.writestr('config.json', '{}')
        archive.writestr('model.weights.h5', inner.getvalue())
    return path


@cache
def tiny_bytes(name: str) -> bytes:
    """Content of the file `tiny` describes, for the many tests that only read it."""
    with TemporaryDirectory() as folder:
        return write(tiny(name), Path(folder) / name).read_bytes()


def write_tiny(name: str, path: Path) -> Path:
    """Write the file `tiny` describes."""
    path.write_bytes(tiny_bytes(name))
    return path


def fill_groups(source: Tree, h5: h5py.File, as_text: bool = False) -> None:
    """Write a tree's groups with their attributes."""
    for name, attrs in source['groups'].items():
        group = h5.require_group(name)
        for key, value in attrs.items():
            if isinstance(value, list):
                value = np.array(value, dtype=object if as_text else 'S') if value else np.zeros(0)
            group.attrs[key] = value


def fill(source: Tree, h5: h5py.File, as_text: bool = False) -> None:
    """Write a tree's groups, attributes and arrays into an opened file."""
    fill_groups(source, h5, as_text)
    for name, spec in source['datasets'].items():
        values = stored_numbers(spec)
        h5[name] = values
        if values.dtype == BFLOAT16:
            h5[name].attrs['dtype'] = 'bfloat16'


class Listing:
    """A tree as an opened file shows it before anything is read, without writing the file.

    Args:
        source: The tree; changes to its attributes show.
        name: What to call the file.
    """

    container = 'HDF5'

    def __init__(self, source: Tree, name: str = 'file.h5') -> None:
        self.name = name
        self._groups = source['groups']
        self.groups = set(source['groups'])
        self.arrays = {path: StoredArray(path, tuple(spec['shape']),
                                         'integer' if spec['kind'] == 'step' else spec.get('stored', 'float32'))
                       for path, spec in source['datasets'].items()}

    def texts(self, group: str, attribute: str) -> list[str] | None:
        """A group's text attribute as a list, None where it is absent."""
        value = self._groups.get(group, {}).get(attribute)
        return [value] if isinstance(value, str) else value
