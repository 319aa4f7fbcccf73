"""Cases for fuzzing the reader: small valid Keras files with their structure changed."""
from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import h5py
import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.file_window import FileWindow
from mgdet_plugin.weights.container.safe_h5 import SafeH5
from mgdet_plugin.weights.container.zip_member import MEMBER, member_window
from mgdet_plugin.weights.mapping.layout import assign, resolve_layers
from tests.support.keras_files import Tree, fill_groups, tree

VALUES = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 65535, 2 ** 31 - 1, 2 ** 32 - 1, 2 ** 40, 2 ** 63, 2 ** 64 - 1]
Tensors = dict[str, bytes]


def narrow(name: str) -> Tree:
    """A recorded structure with a thirty-second of every width: little but structure."""
    small = tree(name)
    for spec in small['datasets'].values():
        *kernel, outputs = spec['shape']
        outputs = 9 if spec['layer'].startswith('predict') else max(1, outputs // 32)
        if len(kernel) == 3 and kernel[2] != 3:
            kernel[2] = max(1, kernel[2] // 32)
        spec['shape'] = [*kernel, outputs]
    return small


def filled(source: Tree, as_text: bool = False, dtype: str = '<f4', libver: str = 'earliest', **options: Any) -> bytes:
    """Content of an HDF5 file with a tree's groups, attributes and random positive numbers."""
    rng, buffer = np.random.RandomState(0), io.BytesIO()
    with h5py.File(buffer, 'w', libver=libver) as h5:
        fill_groups(source, h5, as_text)
        for name, spec in source['datasets'].items():
            values = rng.uniform(.5, 1.5, spec['shape']).astype(dtype)
            h5.create_dataset(name, data=values, **options)
    return buffer.getvalue()


def few() -> Tree:
    """Two layers in the legacy layout, small enough for hundreds of cases a second."""
    norm = ('gamma', 'beta', 'moving_mean', 'moving_variance')
    layers = {'conv2d': {'kernel': [3, 3, 2, 4]}, 'batch_normalization': {kind: [4] for kind in norm}}
    source: Tree = dict(groups={'/': dict(layer_names=list(layers), keras_version='2.15.0')}, datasets={})
    for layer, weights in layers.items():
        source['groups'][f'/{layer}'] = dict(weight_names=[f'{layer}/{weight}:0' for weight in weights])
        for weight, shape in weights.items():
            source['datasets'][f'/{layer}/{layer}/{weight}:0'] = dict(shape=shape, layer=layer, kind=weight)
    return source


def zipped(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A ``.keras`` archive with the member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as archive:
        archive.writestr('metadata.json', '{}')
        archive.writestr(MEMBER, content)
    return buffer.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    'legacy': lambda: filled(narrow('keras2_model5_legacy.h5')),
    'legacy text': lambda: filled(narrow('keras3_darknet53.h5'), as_text=True),
    'weights': lambda: filled(narrow('keras3_model5.weights.h5')),
    'weights without names': lambda: filled(narrow('keras2_model5.weights.h5')),
}
SMALL: dict[str, Callable[[], bytes]] = {
    'plain': lambda: filled(few()),
    'text': lambda: filled(few(), as_text=True),
    'big-endian': lambda: filled(few(), dtype='>f4'),
    'float16': lambda: filled(few(), dtype='<f2'),
    'chunks': lambda: filled(few(), chunks=True),
    'gzip': lambda: filled(few(), chunks=True, compression='gzip'),
    'shuffle': lambda: filled(few(), chunks=True, shuffle=True),
    'shuffle gzip': lambda: filled(few(), chunks=True, shuffle=True, compression='gzip'),
    'newer format': lambda: filled(few(), libver='latest'),
    'archive': lambda: zipped(filled(few())),
    'packed archive': lambda: zipped(filled(few()), zipfile.ZIP_DEFLATED),
}


@dataclass
class Base:
    """A valid file.

    Attributes:
        content: Its bytes.
        live: Positions of structure that is in use.
        positions: The same, as a set.
        marks: Those of them that are not zero.
        tensors: What reads from it.
    """

    content: bytes
    live: list[int]
    positions: frozenset[int] = field(init=False)
    marks: list[int] = field(init=False)
    tensors: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = frozenset(self.live)
        self.marks = [at for at in self.live if self.content[at]]


@cache
def base(kind: str) -> Base:
    """A kind of base file, with what reads from it."""
    content = (WHOLE | SMALL)[kind]()
    if content.startswith(b'PK'):
        inner = filled(few())
        at = content.find(inner)
        live = [*range(at if at > 0 else 200), *range(at + len(inner) if at > 0 else len(content) - 300, len(content))]
    else:
        live = live_structure(content)
    made = Base(content, live)
    made.tensors = read(kind, content)
    return made


def live_structure(content: bytes) -> list[int]:
    """Positions of all but the numbers of arrays: structure, and the free space between its pieces."""
    positions = set(range(len(content)))
    with SafeH5(io.BytesIO(content), 'base') as h5:
        for array in h5.arrays.values():
            for block in array.storage.blocks:
                positions.difference_update(range(block.address, block.address + block.size))
    return sorted(positions)


class InProcess(SafeH5):
    """What ``resolve_layers`` needs of a weights file."""

    container = 'HDF5'


def read(kind: str, content: bytes) -> Tensors:
    """All tensors of a file as the import reads them, by the key of the network or by path.

    Raises:
        UserError: The reader refuses it.
    """
    stream: io.BytesIO | FileWindow = io.BytesIO(content)
    if content.startswith(b'PK'):
        descriptor = os.memfd_create('case')
        whole = FileWindow(io.FileIO(descriptor, 'r+'), 0, len(content))
        whole.stream.write(content)
        stream = member_window(whole, 'case')
    elif not content.startswith(b'\x89HDF\r\n\x1a\n'):
        raise UserError('not HDF5')
    with InProcess(stream, 'case') as h5:
        return tensors(kind, h5)


def tensors(kind: str, weights: Any) -> Tensors:
    """The tensors of an opened file."""
    if kind in WHOLE:
        layout = resolve_layers(weights)
        return {item.key: weights.read(item.source.path, item.source.shape).tobytes()
                for item in assign(layout, layout.part)}
    source = few()
    for group, attributes in source['groups'].items():  # as `resolve_layers` does
        for attribute, value in attributes.items():
            if attribute != 'keras_version' and weights.texts(group, attribute) != value:
                raise UserError('other names')
    if weights.arrays.keys() != source['datasets'].keys():
        raise UserError('other arrays')
    return {path: weights.read(path, tuple(spec['shape'])).tobytes() for path, spec in source['datasets'].items()}


def case(seed: int) -> tuple[str, bytes]:
    """The kind and content of a case."""
    rng = random.Random(seed)
    kind = rng.choice(list(WHOLE)) if rng.random() < .06 else rng.choice(list(SMALL))
    origin = base(kind)
    raw = bytearray(origin.content)
    for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 4, 8])):
        mutate(raw, origin, rng)
    if rng.random() < .02:
        del raw[rng.randrange(len(raw)):]
    elif rng.random() < .02:
        raw += rng.randbytes(rng.choice([1, 8, 4096]))
    return kind, bytes(raw)


def mutate(raw: bytearray, origin: Base, rng: random.Random) -> None:
    """Change one place of the structure."""
    place = rng.choice(origin.marks if rng.random() < .7 else origin.live)
    choice = rng.random()
    if choice < .4:
        raw[place] ^= 1 << rng.randrange(8)
        return
    width = rng.choice([1, 2, 4, 8])
    place -= place % width
    value = int.from_bytes(origin.content[place:place + width], 'little')
    if choice < .55:
        value = rng.choice(VALUES)
    elif choice < .7:
        value += rng.choice([-64, -16, -8, -4, -1, 1, 4, 8, 16, 64, 248])
    elif choice < .8:
        value = rng.choice(origin.live)
    elif choice < .95:
        width = rng.choice([8, 16, 24, 40, 64])
        start = rng.choice(origin.marks) // 8 * 8
        value = int.from_bytes(origin.content[start:start + width], 'little')
    else:
        width, value = rng.choice([8, 16, 64]), 0
    changed = (value % 256 ** width).to_bytes(width, 'little')
    for at in range(place, place + width):
        if at in origin.positions:
            raw[at] = changed[at - place]
