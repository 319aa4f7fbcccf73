"""Files that strangers made: every one is refused by one line, quickly, in little memory, and leaves nothing.

The whole import runs in this process, after its imports. Its memory is the peak of this process above what it held
before (Linux resets that peak on request), plus the whole peak of the process that lists the file.
"""
from __future__ import annotations

import json
import marshal
import sys
import threading
import time
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container.safe_h5 import SafeH5
from mgdet_plugin.weights.container.zip_member import MEMBER
from mgdet_plugin.weights.importer import import_keras
from tests.support import hostile_archives  # noqa: F401  enters them in KINDS
from tests.support.hostile_files import KINDS, SOURCE
from tests.support.keras_files import TINY_OPTIONS, fill, tiny, tiny_bytes, write_tiny

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is measured through /proc')
SECONDS, MEGABYTES = 2.0, 200
TRIES = 3  # other programs may hold the processor


@dataclass(frozen=True)
class Refusal:
    """How an import ended.

    Attributes:
        line: Its one line.
        seconds: Wall clock.
        megabytes: Growth of this process and the peak of its child.
    """

    line: str
    seconds: float
    megabytes: float


class PeakOfChildren(threading.Thread):
    """Follow the peak memory of this process's children, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = {}
        self._done = threading.Event()

    def run(self) -> None:
        """Look every few milliseconds; the system keeps a child's peak while it lives."""
        while not self._done.wait(.004):
            for children in Path('/proc/self/task').glob('*/children'):
                try:
                    for child in children.read_text().split():
                        if b'reader_process.serve' not in Path(f'/proc/{child}/cmdline').read_bytes():
                            continue  # until it has begun its own program, it shows this process's memory
                        self.peaks[child] = max(self.peaks.get(child, 0), status(child, 'VmHWM'))
                except OSError:
                    continue

    def stop(self) -> int:
        """End; returns the largest peak."""
        self._done.set()
        self.join()
        return max(self.peaks.values(), default=0)


def status(process: str, key: str) -> int:
    """A memory figure of a process in bytes."""
    text = Path(f'/proc/{process}/status').read_text()
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key)), 0)


def measured(src: Path, folder: Path) -> Refusal:
    """Import a file that must be refused, and hold the bounds."""
    before = sorted(folder.rglob('*'))
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    base = status('self', 'VmRSS')
    children = PeakOfChildren()
    children.start()
    start = time.perf_counter()
    try:
        with pytest.raises(UserError) as caught:
            import_keras(src, folder / 'out.pth', report=folder / 'out.json', cfg_options=TINY_OPTIONS)
    finally:
        seconds = time.perf_counter() - start
        child = children.stop()
    assert sorted(folder.rglob('*')) == before
    return Refusal(str(caught.value), seconds, (status('self', 'VmHWM') - base + child) / 2 ** 20)


def refused(src: Path, folder: Path, worst: dict[str, Refusal], what: str) -> str:
    """The line that refuses a file, every bound held."""
    for _ in range(TRIES):
        found = measured(src, folder)
        if found.seconds < SECONDS:
            break
    worst[what] = found
    assert found.seconds < SECONDS and found.megabytes < MEGABYTES, found
    assert found.line and '\n' not in found.line and found.line.isprintable(), found
    assert str(src) in found.line and 'open files' not in found.line
    return found.line


@pytest.fixture(scope='module')
def worst(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Refusal]]:
    """Filled by the tests; what was worst is printed at their end (seen with ``-s``)."""
    folder = tmp_path_factory.mktemp('valid')
    import_keras(write_tiny(SOURCE, folder / 'a.h5'), folder / 'a.pth', cfg_options=TINY_OPTIONS)  # all imports done
    refusals: dict[str, Refusal] = {}
    yield refusals
    if refusals:
        slow = max(refusals, key=lambda name: refusals[name].seconds)
        large = max(refusals, key=lambda name: refusals[name].megabytes)
        print(f'\n{len(refusals)} hostile files refused; slowest {refusals[slow].seconds:.2f} s ({slow}), '
              f'most memory {refusals[large].megabytes:.0f} MB ({large})')


@pytest.mark.parametrize('kind', KINDS)
def test_refuses_hostile_files(tmp_path, worst, kind):
    make, cause = KINDS[kind]
    make(tmp_path / 'a.h5')
    assert cause in refused(tmp_path / 'a.h5', tmp_path, worst, kind)


def test_refuses_truncation_at_fifty_points(tmp_path, worst):
    content = tiny_bytes(SOURCE)
    for size in np.random.RandomState(0).randint(8, len(content), 50):
        (tmp_path / 'a.h5').write_bytes(content[:size])
        assert 'damaged or truncated' in refused(tmp_path / 'a.h5', tmp_path, worst, f'cut to {size} bytes')


def test_refuses_truncation_hidden_by_its_superblock(tmp_path, worst):
    """The end of file the superblock states is made to fit, so that only the structure can tell."""
    content = tiny_bytes(SOURCE)
    for size in np.random.RandomState(1).randint(2_000, len(content), 6):
        (tmp_path / 'a.h5').write_bytes(content[:40] + int(size).to_bytes(8, 'little') + content[48:size])
        assert 'damaged' in refused(tmp_path / 'a.h5', tmp_path, worst, f'cut to {size} bytes and says so')


def structure_of(content: bytes) -> list[tuple[str, int]]:
    """Places in the structure whose damage must be noticed: the address and the size of arrays, by path."""
    places = []
    with SafeH5(BytesIO(content), 'valid') as h5:
        for path, array in h5.arrays.items():
            block = array.storage.blocks[0]
            fields = block.address.to_bytes(8, 'little') + block.size.to_bytes(8, 'little')
            assert content.count(fields) == 1
            places.append((path, content.index(fields)))
    return places


def test_refuses_flipped_bits_of_addresses(tmp_path, worst):
    """An address in the older format has no checksum; a flip makes other bytes of the file the array's."""
    content, random = tiny_bytes(SOURCE), np.random.RandomState(2)
    places = structure_of(content)
    for _ in range(15):
        path, at = places[random.randint(len(places))]
        bit = random.randint(21)  # higher ones reach beyond the file
        raw = bytearray(content)
        raw[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / 'a.h5').write_bytes(raw)
        assert 'damaged' in refused(tmp_path / 'a.h5', tmp_path, worst, f'bit {bit} of the address of {path}')


CODE = dict(class_name='Lambda', config=dict(name='lambda', function_type='lambda', function=[
    b64encode(marshal.dumps(compile('raise SystemExit("ran")', 'stored', 'exec'))).decode(), None, None]))


def test_a_stored_config_is_never_looked_at(tmp_path):
    """Code in a config is not refused but ignored: the weights are right, and nothing of it is parsed or run."""
    plain, evil, packed = write_tiny(SOURCE, tmp_path / 'plain.h5'), tmp_path / 'evil.h5', tmp_path / 'evil.keras'
    with h5py.File(evil, 'w') as h5:
        fill(tiny(SOURCE), h5)
        h5.attrs['model_config'] = json.dumps(dict(class_name='Functional', config=dict(layers=[CODE])))
    with zipfile.ZipFile(packed, 'w') as archive, zipfile.ZipFile(BytesIO(tiny_bytes('keras3_model5.keras'))) as valid:
        archive.writestr('config.json', json.dumps(CODE))
        archive.writestr(MEMBER, valid.read(MEMBER))
    packed.write_bytes(packed.read_bytes().replace(b'"Lambda"', b'"Lambdb"', 1))  # its checksum is wrong from here on
    with zipfile.ZipFile(packed) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read('config.json')
    import_keras(plain, tmp_path / 'plain.pth', cfg_options=TINY_OPTIONS)
    expected = torch.load(tmp_path / 'plain.pth')['state_dict']
    for path in (evil, packed):
        import_keras(path, tmp_path / 'out.pth', cfg_options=TINY_OPTIONS)
        state = torch.load(tmp_path / 'out.pth')['state_dict']
        assert [key for key in expected if not torch.equal(state[key], expected[key])] == []


def test_the_attribute_model_config_is_never_read(tmp_path):
    """Even where its place in the file holds nothing that could be read."""
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as h5:
        fill(tiny(SOURCE), h5)
        h5.attrs['model_config'] = np.bytes_(json.dumps(CODE))
    raw = path.read_bytes()
    assert raw.count(b'"Lambda"') == 1
    path.write_bytes(raw.replace(b'"Lambda"', b'\xff\xfe\xfd"[[[['))
    import_keras(path, tmp_path / 'out.pth', cfg_options=TINY_OPTIONS)
