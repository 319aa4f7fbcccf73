"""Darknet's own weights: where every number lies, which networks are known, and what is refused."""
from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.darknet import ScaledDarknet
from mgdet_plugin.weights.container.darknet_file import (
    DarknetFile,
    backbone_kernels,
    head_kernels,
    looks_like_darknet,
    normalisation_note,
)
from mgdet_plugin.weights.container.file_window import Digest, FileWindow
from mgdet_plugin.weights.importer import import_keras
from tests.support.keras_files import TINY_OPTIONS

TINY_FLOATS = 162_910  # of a backbone of base width 2: 39,598 * 2^2 + 2,259 * 2
SHORT_HEADER = struct.pack('<3ii', 0, 1, 0, 7)
LONG_HEADER = struct.pack('<3iq', 0, 2, 0, 32_013_312)


@contextmanager
def opened(content: bytes, size: int | None = None) -> Iterator[DarknetFile]:
    """A file of that content, which claims to be of ``size`` bytes where that is given."""
    with TemporaryFile(buffering=0) as stream:
        stream.write(content)
        window = FileWindow(stream, 0, len(content) if size is None else size)
        with Digest(FileWindow(stream, 0, window.size)) as digest:
            yield DarknetFile(window, 'a.weights', digest)


def refusal(content: bytes, size: int | None = None) -> str:
    with pytest.raises(UserError) as caught, opened(content, size):
        raise AssertionError('the file was accepted')
    assert '\n' not in str(caught.value) and str(caught.value).startswith('a.weights: ')
    return str(caught.value)


def numbered(count: int) -> bytes:
    """The whole numbers from 0 on as float32."""
    return np.arange(count, dtype='<f4').tobytes()


@pytest.mark.parametrize('header, container', [
    (SHORT_HEADER, '0.1.0'), (LONG_HEADER, '0.2.0'), (struct.pack('<3iq', 0, 2, 5, 0), '0.2.5'),
    (struct.pack('<3iq', 1, 0, 0, 0), '1.0.0'), (struct.pack('<3iq', 0, 3, 1, -1), '0.3.1'),
])
def test_numbers_lie_where_darknet_puts_them(header, container):
    content = header + numbered(TINY_FLOATS)
    assert looks_like_darknet(content[:40], len(content))
    with opened(content) as file:
        assert file.container == f'Darknet weights (header {container})'
        assert file.size == len(content) and file.sha256 == hashlib.sha256(content).hexdigest()
        assert file.texts('/', 'layer_names') is None
        assert len(file.arrays) == 5 * 52 and len(file.groups) == 53 and not file.extras
        check_numbers(file)


def check_numbers(file: DarknetFile) -> None:
    """Every number of :func:`numbered` is its own place in the file."""
    for name, values in dict(biases=(0, 1), scales=(2, 3), rolling_mean=(4, 5), rolling_variance=(6, 7)).items():
        array = file.read(f'/convolutional_0/{name}', (2,))
        assert array.dtype == np.float32 and tuple(array) == values
    kernel = file.read('/convolutional_0/weights', (3, 3, 3, 2))
    assert kernel[0, 0, 0, 0] == 8 and kernel[0, 1, 0, 0] == 9 and kernel[1, 0, 0, 0] == 11
    assert kernel[0, 0, 1, 0] == 17 and kernel[0, 0, 0, 1] == 35 and kernel[2, 2, 2, 1] == 61
    assert tuple(file.read('/convolutional_1/biases', (4,))) == (62, 63, 64, 65)
    last = file.read('/convolutional_51/weights', (3, 3, 32, 64))
    assert last[2, 2, 31, 63] == TINY_FLOATS - 1
    assert torch.from_numpy(last).permute(3, 2, 0, 1).is_contiguous()


def test_layers_are_named_and_ordered():
    with opened(LONG_HEADER + numbered(TINY_FLOATS)) as file, pytest.raises(UserError, match='has the shape'):
        file.read('/convolutional_0/weights', (3, 3, 2, 3))
    assert file.layout == 'Darknet53 backbone of width 2'
    assert [place for place, _ in file.layers[:4]] == ['/convolutional_0', '/convolutional_0', '/convolutional_1',
                                                       '/convolutional_1']
    kernels, norms = file.layers[::2], file.layers[1::2]
    assert all(list(arrays) == ['kernel'] for _, arrays in kernels) and len(kernels) == 52
    assert {weight: array.path for weight, array in norms[3][1].items()} == dict(
        beta='/convolutional_3/biases', gamma='/convolutional_3/scales', moving_mean='/convolutional_3/rolling_mean',
        moving_variance='/convolutional_3/rolling_variance')


@pytest.mark.parametrize('size, rest, floats', [
    (166_582_580, 'classifier of 1000 ImageNet classes', 1_025_000),
    (248_007_048, 'YOLOv3 head of 80 classes', 21_381_117),
    (252_209_544, 'YOLOv3-SPP head of 80 classes', 22_431_741),
    (248_007_048 - 60 * 3 * 1795 * 4, 'YOLOv3 head of 20 classes', 21_381_117 - 60 * 3 * 1795),
])
def test_networks_that_begin_with_the_backbone(size, rest, floats):
    """248,007,048 bytes is the size of the published yolov3.weights."""
    with opened(LONG_HEADER, size) as file:
        assert file.layout == f'Darknet53 backbone before a {rest}'
        assert file.extras == {'/after_the_backbone': f'{rest}, not part of the backbone'}
        assert file.arrays['/after_the_backbone'].shape == (floats,)
        assert len(file.layers) == 104


def test_the_published_backbone():
    with opened(LONG_HEADER, 162_482_580) as file:
        assert file.layout == 'Darknet53 backbone' and not file.extras
        assert file.arrays['/convolutional_0/weights'].shape == (3, 3, 3, 32)
        assert file.arrays['/convolutional_51/weights'].shape == (3, 3, 512, 1024)


def test_no_width_has_the_size_of_another_network():
    """The number of bytes alone tells them apart."""
    def floats(kernels):
        return sum(4 * outputs + inputs * outputs * side * side for inputs, outputs, side in kernels)

    plain = {floats(backbone_kernels(width)) for width in range(2, 129, 2)}
    full = floats(backbone_kernels(32))
    heads = [full + floats(head_kernels(spp)) + 3 * (5 + classes) * 1795 for spp in (False, True)
             for classes in range(1, 1001)]
    sizes = [*plain, *heads, full + 1_025_000]
    assert len(sizes) == len(set(sizes)) == 64 + 2000 + 1


@pytest.mark.parametrize('width', [2, 4, 16, 30, 128])
def test_other_widths(width):
    with opened(LONG_HEADER, 20 + 4 * (39_598 * width ** 2 + 2_259 * width)) as file:
        assert file.layout == f'Darknet53 backbone of width {width}'
        assert file.arrays['/convolutional_51/weights'].shape == (3, 3, 16 * width, 32 * width)


def test_truncation_anywhere_is_refused():
    whole = LONG_HEADER + numbered(TINY_FLOATS)
    for size in [*np.linspace(16, len(whole) - 1, 200).astype(int), *range(len(whole) - 9, len(whole))]:
        assert 'are those of no Darknet53' in refusal(whole[:size])
    for size in range(16):
        assert not looks_like_darknet(whole[:size], size)
        assert 'no Darknet weights' in refusal(whole[:size])


@pytest.mark.parametrize('extra', [1, 2, 3, 4, 8, 4096])
def test_extra_bytes_are_refused(extra):
    message = refusal(LONG_HEADER + numbered(TINY_FLOATS) + bytes(extra))
    assert f'{651_660 + extra:,} bytes with a header of 20' in message
    assert '162,482,580 (darknet53.conv.74)' in message and '651,660 (base width 2)' in message


@pytest.mark.parametrize('size', [248_007_048 + 4 * 1795, 248_007_048 - 4, 166_582_580 + 4, 162_482_580 - 4_096,
                                  35_434_956, 257_717_640])
def test_sizes_between_the_known_networks_are_refused(size):
    """A prediction has three channels a class and scale; the last two are of other networks (tiny, version 4)."""
    assert '248,007,048 (yolov3.weights of 80 classes)' in refusal(LONG_HEADER, size)


def test_a_header_of_the_other_length_is_refused():
    assert 'with a header of 20' in refusal(LONG_HEADER[:16] + numbered(TINY_FLOATS))
    assert 'with a header of 16' in refusal(SHORT_HEADER + bytes(4) + numbered(TINY_FLOATS))


@pytest.mark.parametrize('start', [
    struct.pack('>3iq', 0, 2, 0, 0), struct.pack('<3iq', 0, 0, 0, 0), struct.pack('<3iq', -1, 2, 0, 0),
    struct.pack('<3iq', 0, 2, -5, 0), struct.pack('<3iq', 1001, 0, 0, 0), struct.pack('<3iq', 0, 2000, 0, 0),
    b'\x89HDF\r\n\x1a\n' + bytes(12), b'PK\x03\x04' + bytes(16), b'<!DOCTYPE html><html>', bytes(40),
])
def test_other_content_is_no_darknet_file(start):
    assert not looks_like_darknet(start, 162_482_580)
    assert 'no Darknet weights' in refusal(start + numbered(TINY_FLOATS))


@pytest.mark.parametrize('size', [10 ** 12, 2 ** 63 - 1, 4 * 2 ** 40 + 20, 20 + 4 * (39_598 * 130 ** 2 + 2_259 * 130)])
def test_huge_files_are_refused_unread(size):
    assert 'are those of no Darknet53' in refusal(LONG_HEADER, size)


def test_a_file_that_shrinks_while_it_is_read_is_refused():
    with opened(LONG_HEADER + bytes(400_000), 651_660) as file, pytest.raises(UserError, match='changed while'):
        file.read('/convolutional_51/weights', (3, 3, 32, 64))


def test_normalisation_note():
    """sqrt(0.001 / 0.002) is 0.7071, its complement 29.29%; a variance of 1 loses 0.05%."""
    note = normalisation_note([np.full(3, 1., np.float32), np.array([0.001], np.float32)])
    assert 'smaller by 0.05% in the median channel' in note and 'more than 1% in 25.0%' in note
    assert '29.29%' in normalisation_note([np.array([0.001])])


def darknet_bytes(backbone: torch.nn.Module, header: bytes = LONG_HEADER) -> bytes:
    """A backbone's parameters as Darknet writes them; its modules are registered in the order of the cfg file."""
    parts = [header]
    for module in backbone.modules():
        if isinstance(module, ConvModule):
            norm = module.bn
            for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, module.conv.weight):
                parts.append(tensor.detach().numpy().astype('<f4').tobytes())
    return b''.join(parts)


@pytest.fixture
def backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    model = ScaledDarknet(widen_factor=1 / 16)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    return model


@pytest.mark.parametrize('header', [SHORT_HEADER, LONG_HEADER], ids=['0.1', '0.2'])
def test_import_gives_the_very_backbone(tmp_path: Path, backbone, header):
    src, out = tmp_path / 'a.conv.74', tmp_path / 'out.pth'
    src.write_bytes(darknet_bytes(backbone, header))
    report = import_keras(src, out, part='backbone', cfg_options=TINY_OPTIONS)
    state = torch.load(out)['state_dict']
    expected = backbone.state_dict()
    assert {key.removeprefix('backbone.') for key in state} == set(expected)
    assert [key for key in state if not torch.equal(state[key], expected[key.removeprefix('backbone.')])] == []
    assert report['source']['container'].startswith('Darknet weights') and report['not_used'] == {}


@pytest.mark.parametrize('value, cause', [(np.nan, 'NaN or infinite'), (np.inf, 'NaN or infinite'),
                                          (-1, 'negative variance')])
def test_import_refuses_bad_numbers(tmp_path: Path, backbone, value, cause):
    backbone.conv_res_block5.res3.conv2.bn.running_var[3] = value
    src = tmp_path / 'a.conv.74'
    src.write_bytes(darknet_bytes(backbone))
    with pytest.raises(UserError, match=cause):
        import_keras(src, tmp_path / 'out.pth', part='backbone', cfg_options=TINY_OPTIONS)
    assert sorted(tmp_path.iterdir()) == [src]


def test_import_as_a_model_or_at_another_width_is_refused(tmp_path: Path, backbone):
    src = tmp_path / 'a.conv.74'
    src.write_bytes(darknet_bytes(backbone))
    with pytest.raises(UserError, match='import it with --part backbone'):
        import_keras(src, tmp_path / 'out.pth', cfg_options=TINY_OPTIONS)
    with pytest.raises(UserError, match='is this the right --config'):
        import_keras(src, tmp_path / 'out.pth', part='backbone')
