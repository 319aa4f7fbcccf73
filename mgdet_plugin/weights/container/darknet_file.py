"""Darknet's own weights: the Darknet53 backbone of ``darknet53.conv.74``, ``darknet53.weights`` or ``yolov3.weights``.

The layout is fixed by Darknet's ``load_weights``: three little-endian int32 (major, minor, revision), the number of
images seen (int64 from version 0.2 on, int32 before), then for every convolution in the order of the cfg file its
biases, scales, running means, running variances and kernel (out, in, height, width), all float32. Nothing in the file
names a layer or ends it: the network is told by the number of bytes, so that the end of the file is exact. Darknet
writes the 52 convolutions of the backbone in the order of creation and pads as the network does.

Sources: ``parser.c``, ``darknet53.cfg``, ``yolov3.cfg`` and ``yolov3-spp.cfg`` of Darknet.
"""
from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable
from math import prod

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.file_window import Digest, FileWindow
from mgdet_plugin.weights.container.reader_process import Listing
from mgdet_plugin.weights.container.stored_array import Piece, Storage, StoredArray
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.mapping.architecture import IMAGE_CHANNELS, blocks

HEADER = struct.Struct('<3i')
WIDTH = 32  # output channels of the first convolution of the published networks
WIDTHS = range(2, 129, 2)  # residual blocks halve it
IMAGENET_CLASSES = 1000
MAX_YOLO_CLASSES = 1000
YOLO_CHANNELS = 1024 + 512 + 256 + 3  # that the predictions of three scales take, with a bias each
NORM_NAMES = (('biases', 'beta'), ('scales', 'gamma'), ('rolling_mean', 'moving_mean'),
              ('rolling_variance', 'moving_variance'))
"""Darknet's names of the vectors of a convolution, in the order of the file, and Keras' names."""
NORM_EPSILON = 1e-3  # of this network
DARKNET_EPSILON = 1e-6

Kernel = tuple[int, int, int]  # input channels, output channels, side


def looks_like_darknet(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes may be Darknet's, by the version in its first 16 bytes."""
    if min(len(start), size) < HEADER.size + 4:
        return False
    major, minor, revision = HEADER.unpack_from(start)
    return 0 <= major < 10 and 0 <= minor < 100 and 10 * major + minor >= 1 and 0 <= revision < 1000


def backbone_kernels(width: int) -> list[Kernel]:
    """The 52 convolutions of Darknet53 in the order of the file; ``width`` is what the first one puts out."""
    kernels, channels = [], IMAGE_CHANNELS
    for block in blocks('backbone'):
        outputs = width if not block.inputs else channels // 2 if block.halves else 2 * channels
        kernels.append((channels, outputs, block.size))
        channels = outputs
    return kernels


def head_kernels(spp: bool) -> list[Kernel]:
    """The normalised convolutions of YOLOv3's head, with or without spatial pyramid pooling."""
    kernels: list[Kernel] = []
    for inputs, half in ((1024, 512), (768, 256), (384, 128)):
        kernels += [(inputs, half, 1), *[(half, 2 * half, 3), (2 * half, half, 1)] * 2, (half, 2 * half, 3)]
        if half > 128:
            kernels.append((half, half // 2, 1))  # before upsampling
    return kernels + [(2048, 512, 1)] * spp


def count_floats(kernels: Iterable[Kernel]) -> int:
    """Numbers of normalised convolutions: four vectors and the kernel of each."""
    return sum(len(NORM_NAMES) * outputs + inputs * outputs * side ** 2 for inputs, outputs, side in kernels)


def backbone_floats(width: int) -> int:
    """Numbers of a backbone whose first convolution has ``width`` output channels."""
    return count_floats(backbone_kernels(width))


def tell_network(floats: int) -> tuple[int, str | None] | None:
    """Base width of the backbone in so many numbers, and what follows it; None where no network fits.

    Only the published width is looked for with a head; YOLOv3 may have been trained on any number of classes.
    """
    width = WIDTHS[bisect_left(WIDTHS, floats, hi=len(WIDTHS) - 1, key=backbone_floats)]
    if backbone_floats(width) == floats:
        return width, None
    rest = floats - backbone_floats(WIDTH)
    if rest == IMAGENET_CLASSES * (32 * WIDTH + 1):
        return WIDTH, f'classifier of {IMAGENET_CLASSES} ImageNet classes'
    for name, spp in (('YOLOv3', False), ('YOLOv3-SPP', True)):
        outputs, odd = divmod(rest - count_floats(head_kernels(spp)), YOLO_CHANNELS)
        classes = outputs // 3 - 5
        if not odd and outputs % 3 == 0 and 1 <= classes <= MAX_YOLO_CLASSES:
            return WIDTH, f'{name} head of {classes} classes'
    return None


class DarknetFile(WeightsFile):
    """A Darknet weights file, listed by its size alone.

    Attributes:
        arrays: Every array by its path, with shapes in Keras order: (kh, kw, in, out) for kernels.
        layout: The network found, in words.
        layers: Place and arrays, by Keras' names of weights, of every convolution and every normalisation in order.
        extras: Arrays that are not of the backbone, path -> what they are.

    Raises:
        UserError: The version is unknown, or the size is that of no network.
    """

    def __init__(self, window: FileWindow, name: str, digest: Digest) -> None:
        size = window.size
        window.seek(0)
        start = window.read(HEADER.size + 4) or b''
        if not looks_like_darknet(start, size):
            raise UserError(f'{name}: no Darknet weights, it begins with the bytes {start.hex(" ")}')
        major, minor, revision = HEADER.unpack_from(start)
        container = f'Darknet weights (header {major}.{minor}.{revision})'
        self._end = HEADER.size + (8 if 10 * major + minor >= 2 else 4)
        found = None if (size - self._end) % 4 else tell_network((size - self._end) // 4)
        if found is None:
            raise UserError(f'{name}: {size:,} bytes with a header of {self._end} ({container}) are those of no '
                            f'Darknet53; it has {expected_sizes(size, self._end)}; the file is cut short, too long or '
                            'another network')
        super().__init__(window, name, container, size, Listing({}, {'/'}, {}), digest)
        width, rest = found
        self.layout = 'Darknet53 backbone' + (f' of width {width}' if width != WIDTH else '') + (
            f' before a {rest}' if rest else '')
        self.layers: list[tuple[str, dict[str, StoredArray]]] = []
        self.extras: dict[str, str] = {}
        for index, (inputs, outputs, side) in enumerate(backbone_kernels(width)):
            place = f'/convolutional_{index}'
            self.groups.add(place)
            norm = {keras: self._list_array(f'{place}/{darknet}', (outputs,)) for darknet, keras in NORM_NAMES}
            kernel = self._list_array(f'{place}/weights', (side, side, inputs, outputs))
            self.layers += [(place, {'kernel': kernel}), (place, norm)]
        if rest is not None:
            path = '/after_the_backbone'
            self._list_array(path, ((size - self._end) // 4,))
            self.extras[path] = f'{rest}, not part of the backbone'

    def _list_array(self, path: str, shape: tuple[int, ...]) -> StoredArray:
        size = 4 * prod(shape)
        self.arrays[path] = StoredArray(path, shape, 'float32', Storage('<', (Piece(self._end, size),)))
        self._end += size
        return self.arrays[path]

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """As :meth:`.ArrayReader.read`; a kernel is a view of the file's (out, in, kh, kw), which torch needs too."""
        values = super().read(path, shape)
        if len(shape) != 4:
            return values
        return values.reshape(shape[3], shape[2], *shape[:2]).transpose(2, 3, 1, 0)

    def _read_into(self, address: int, out: memoryview) -> None:
        try:
            super()._read_into(address, out)
        except ValueError:
            raise UserError(f'{self.name}: the file changed while it was read; it ends early') from None


def expected_sizes(size: int, offset: int) -> str:
    """Sizes a file could have had, in words: the published ones, and the width that comes nearest to it."""
    yolo = backbone_floats(WIDTH) + count_floats(head_kernels(False)) + 3 * (5 + 80) * YOLO_CHANNELS
    published = [('darknet53.conv.74', backbone_floats(WIDTH)), ('yolov3.weights of 80 classes', yolo),
                 ('darknet53.weights', backbone_floats(WIDTH) + IMAGENET_CLASSES * (32 * WIDTH + 1))]
    width = min(WIDTHS, key=lambda each: abs(4 * backbone_floats(each) + offset - size))
    if width != WIDTH:
        published.append((f'base width {width}', backbone_floats(width)))
    return ', '.join(f'{4 * floats + offset:,} ({name})' for name, floats in published)


def normalisation_note(variances: Iterable[np.ndarray]) -> str:
    """By how much the network's normalisation differs from Darknet's.

    Darknet divides by sqrt(variance) + 1e-6, this network and Keras' conversions by sqrt(variance + 1e-3); what a
    normalisation puts out before its bias is smaller by the ratio.
    """
    variance = np.concatenate([np.asarray(each, np.float64).ravel() for each in variances])
    ratio = (np.sqrt(variance) + DARKNET_EPSILON) / np.sqrt(variance + NORM_EPSILON)
    return (f'Darknet divides by sqrt(variance) + {DARKNET_EPSILON:g}, this network by sqrt(variance + '
            f'{NORM_EPSILON:g}): each normalised value is smaller by {1 - np.median(ratio):.2%} in the median channel, '
            f'by more than 1% in {np.mean(ratio < 0.99):.1%} of the channels; fine-tuning takes it up')
