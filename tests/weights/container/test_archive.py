"""From a path to an opened weights file: what is told apart, and what is refused."""
from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import threading
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container import zip_member
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.zip_member import MEMBER


def h5_bytes() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, 'w') as h5:
        h5['x'] = np.arange(5, dtype='f4')
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, 'w', method) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught, open_weights(path):
        raise AssertionError('the file was accepted')
    assert '\n' not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_opens_hdf5_and_archives_whatever_their_names(tmp_path, method):
    plain = tmp_path / 'a.bin'
    plain.write_bytes(h5_bytes())
    packed = zipped(tmp_path / 'b.h5', {'config.json': b'{}', MEMBER: h5_bytes()}, method)
    for path, container in ((plain, 'HDF5'), (packed, '.keras archive')):
        with open_weights(path) as weights:
            assert weights.container == container
            assert weights.size == path.stat().st_size
            assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            np.testing.assert_array_equal(weights.read('/x', (5,)), np.arange(5))


def test_refuses_what_is_no_file(tmp_path):
    assert 'does not exist' in refusal(tmp_path / 'missing.h5')
    assert 'is a directory' in refusal(tmp_path)
    os.mkfifo(tmp_path / 'pipe')
    assert 'not a regular file' in refusal(tmp_path / 'pipe')


@pytest.mark.parametrize('content, cause', [
    (b'', 'it is empty (0 bytes)'),
    (b'<!DOCTYPE html>\n<html>', "text beginning '<!DOCTYPE html>'"),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256', "text beginning 'version https://git-lfs"),
    (bytes(range(8)) + b'data', 'bytes 00 01 02 03 04 05 06 07'),
    (h5_bytes()[:8], 'damaged or truncated HDF5'),
    (b'PK\x03\x04' + bytes(100), 'no table of contents'),
])
def test_refuses_foreign_content_and_says_what_it_saw(tmp_path, content, cause):
    path = tmp_path / 'a.h5'
    path.write_bytes(content)
    assert cause in refusal(path)


def test_refuses_archives_without_the_one_member(tmp_path):
    path = tmp_path / 'a.keras'
    assert f'0 members named {MEMBER}' in refusal(zipped(path, {'config.json': b'{}'}))
    assert f'0 members named {MEMBER}' in refusal(zipped(path, {f'../{MEMBER}': h5_bytes()}))
    assert 'is not HDF5' in refusal(zipped(path, {MEMBER: b'text'}))
    assert 'compressed by method 14' in refusal(zipped(path, {MEMBER: h5_bytes()}, zipfile.ZIP_LZMA))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # zipfile warns of the second member
        with zipfile.ZipFile(path, 'w') as target:
            target.writestr(MEMBER, h5_bytes())
            target.writestr(MEMBER, h5_bytes())
    assert f'2 members named {MEMBER}' in refusal(path)


def test_names_a_pytorch_checkpoint(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'a.pth')
    assert 'PyTorch checkpoint' in refusal(tmp_path / 'a.pth')


def test_refuses_a_member_that_expands_beyond_the_cap(tmp_path, monkeypatch):
    bomb = zipped(tmp_path / 'bomb.keras', {MEMBER: bytes(10 ** 7)}, zipfile.ZIP_DEFLATED)
    assert 'claims 10,000,000 bytes' in refusal(bomb)
    monkeypatch.setattr(zip_member, 'MAX_MEMBER_BYTES', 1000)
    assert 'at most 1,000 are accepted' in refusal(zipped(tmp_path / 'a.keras', {MEMBER: h5_bytes()}))


@pytest.mark.parametrize('stated, cause', [(-500, 'damaged or encrypted'), (10, 'is not of the')])
def test_refuses_a_member_of_another_size_than_stated(tmp_path, stated, cause):
    """The size is stated in two headers."""
    path = zipped(tmp_path / 'a.keras', {MEMBER: h5_bytes()}, zipfile.ZIP_DEFLATED)
    size = len(h5_bytes())
    raw = path.read_bytes()
    assert raw.count(struct.pack('<I', size)) == 2
    path.write_bytes(raw.replace(struct.pack('<I', size), struct.pack('<I', size + stated)))
    assert cause in refusal(path)


def test_refuses_damage_and_encryption(tmp_path):
    path = zipped(tmp_path / 'a.keras', {MEMBER: h5_bytes()})
    raw = bytearray(path.read_bytes())
    flipped = bytes(raw[:200]) + bytes([raw[200] ^ 1]) + bytes(raw[201:])
    path.write_bytes(flipped)
    assert 'damaged or encrypted' in refusal(path)
    at = raw.rfind(b'PK\x01\x02') + 8
    raw[at] |= 1  # the flag of encryption
    path.write_bytes(raw)
    assert 'damaged or encrypted' in refusal(path)


def test_refuses_archives_cut_short(tmp_path):
    whole = zipped(tmp_path / 'a.keras', {MEMBER: h5_bytes()}).read_bytes()
    path = tmp_path / 'b.keras'
    for size in np.linspace(4, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:size])
        assert 'no table of contents' in refusal(path)


def test_refuses_a_huge_table_of_contents(tmp_path):
    path = zipped(tmp_path / 'a.keras', {f'{index:0100}': b'' for index in range(8000)})
    assert 'table of contents of' in refusal(path)


@pytest.mark.parametrize('size', [8, 47, 48, 800, len(h5_bytes()) - 1])
def test_says_how_much_of_a_truncated_file_is_there(tmp_path, size):
    whole = h5_bytes()
    path = tmp_path / 'a.h5'
    path.write_bytes(whole[:size])
    stated = len(whole) if size >= 48 else None
    line = refusal(path)
    assert f'({size:,} bytes are there of' in line and (stated is None or f'of {stated:,} it states' in line)


def test_reads_archives_that_state_sizes_in_other_ways(tmp_path):
    """Sizes of 64 bits in the member's own header, and sizes that follow the data."""
    wide, streamed = tmp_path / 'wide.keras', tmp_path / 'streamed.keras'
    with zipfile.ZipFile(wide, 'w') as target, target.open(MEMBER, 'w', force_zip64=True) as member:
        member.write(h5_bytes())
    with streamed.open('wb') as raw, zipfile.ZipFile(Unseekable(raw), 'w') as target:
        target.writestr(MEMBER, h5_bytes())
    assert b'PK\x07\x08' in streamed.read_bytes() and b'\xff' * 8 in wide.read_bytes()[:40]
    for path in (wide, streamed):
        with open_weights(path) as weights:
            np.testing.assert_array_equal(weights.read('/x', (5,)), np.arange(5))


class Unseekable(io.RawIOBase):
    """A stream to which zip archives are written with their sizes behind the data."""

    def __init__(self, target: io.BufferedWriter) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self.target.write(data)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_never_whole_in_the_memory_of_this_process(tmp_path, method):
    buffer, values = io.BytesIO(), np.random.RandomState(0).standard_normal(10 ** 7).astype('f4')
    with h5py.File(buffer, 'w') as h5:
        h5['x'], h5['y'] = values, values[:5]
    path = zipped(tmp_path / 'a.keras', {MEMBER: buffer.getvalue()}, method)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tracemalloc.start()
    with open_weights(path) as weights:
        np.testing.assert_array_equal(weights.read('/y', (5,)), values[:5])
        assert weights.sha256 == digest
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert weights.read('/x', (10 ** 7,)).tobytes() == values.tobytes()
    assert peak < .2 * values.nbytes


def test_the_digest_is_there_after_the_file_is_closed(tmp_path):
    path = tmp_path / 'a.h5'
    path.write_bytes(h5_bytes())
    with open_weights(path) as weights:
        pass
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_cut_while_it_is_open_is_refused(tmp_path):
    path = tmp_path / 'a.h5'
    path.write_bytes(h5_bytes())
    with pytest.raises(UserError, match='reach beyond the end'), open_weights(path) as weights:
        os.truncate(path, 1000)
        weights.read('/x', (5,))


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='open files are counted through /proc')
def test_nothing_is_left_running_or_open_after_a_refusal(tmp_path):
    path = tmp_path / 'a.h5'
    path.write_bytes(h5_bytes()[:-1] + b'\x01')
    before = threading.active_count(), len(os.listdir('/proc/self/fd'))
    with pytest.raises(UserError, match='has the shape'), open_weights(path) as weights:
        weights.read('/x', (7,))
    assert (threading.active_count(), len(os.listdir('/proc/self/fd'))) == before


def test_more_than_a_file_can_hold_is_not_read(tmp_path):
    """Chunks of zeros pack a thousandfold; weights do not."""
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as h5:
        h5.create_dataset('x', data=np.zeros(3 * 10 ** 6, 'f4'), chunks=(3 * 10 ** 5,), compression='gzip')
    with pytest.raises(UserError, match='would take 12,000,000 bytes'), open_weights(path) as weights:
        weights.read('/x', (3 * 10 ** 6,))


def test_names_other_formats_and_what_to_give_instead(tmp_path):
    model = tmp_path / 'model'
    model.mkdir()
    (model / 'saved_model.pb').write_bytes(b'\x08\x01\x12')
    assert 'is a TensorFlow SavedModel; load it in Keras and save' in refusal(model)
    (tmp_path / 'ckpt.index').write_bytes(bytes(50))
    assert 'is a TensorFlow checkpoint' in refusal(tmp_path / 'ckpt')
    (tmp_path / 'a.h5').write_bytes(b'\x1f\x8b' + bytes(50))
    assert 'is a packed file (gzip)' in refusal(tmp_path / 'a.h5')
