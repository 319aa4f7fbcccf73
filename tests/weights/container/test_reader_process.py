"""The process that lists a file: it answers as the reader in this process does, and whatever it does ends well."""
from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO, FileIO
from pathlib import Path

import pytest

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.container import reader_process
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.file_window import FileWindow
from mgdet_plugin.weights.container.reader_process import TEXT_ATTRIBUTES, ListingProcess
from mgdet_plugin.weights.container.safe_h5 import SafeH5
from mgdet_plugin.weights.container.zip_member import MEMBER
from tests.support.keras_files import BACKBONE_TREES, MODEL_TREES, tiny, tiny_bytes, with_optimizer, write, write_tiny

LINUX = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the limits are those of Linux')
LIMITED = 'import sys, json; sys.path[:] = json.loads(sys.argv[1]); from mgdet_plugin.weights.container ' \
          'import reader_process\nreader_process.limit_this_process({cpu})\n{then}'


def result(path: Path) -> reader_process.Listing:
    with FileIO(path) as stream:
        return ListingProcess(FileWindow(stream, 0, path.stat().st_size), 'a.h5').result()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        result(path)
    assert '\n' not in str(caught.value) and str(caught.value).startswith('a.h5: ')
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny('keras3_model5_full.h5', tmp_path / 'a.h5')


@pytest.mark.parametrize('name', MODEL_TREES + BACKBONE_TREES)
def test_the_child_lists_what_the_reader_in_this_process_lists(tmp_path, name):
    path = write(with_optimizer(tiny(name)), tmp_path / name, as_text=True)
    content = path.read_bytes()
    if name.endswith('.keras'):
        with zipfile.ZipFile(path) as archive:
            content = archive.read(MEMBER)
    with open_weights(path) as weights, SafeH5(BytesIO(content), 'a.h5') as h5:
        assert weights.arrays == h5.arrays and weights.groups == h5.groups
        assert [array.storage for array in weights.arrays.values()] == [each.storage for each in h5.arrays.values()]
        for group in h5.groups:
            for attribute in TEXT_ATTRIBUTES:
                assert weights.texts(group, attribute) == h5.texts(group, attribute)
        array = next(array for array in h5.arrays.values() if array.dtype == 'float32')
        assert weights.read(array.path, array.shape).tobytes() == h5.read(array.path, array.shape).tobytes()


def test_an_attribute_that_is_not_listed_is_a_mistake_of_the_caller(source):
    with open_weights(source) as weights, pytest.raises(ValueError, match='model_config'):
        weights.texts('/', 'model_config')


def test_a_refused_attribute_is_refused_only_where_it_is_asked_for(tmp_path):
    changed = tiny('keras3_model5_full.h5')
    changed['groups']['/model_weights']['name'] = 'n' * 2000
    with open_weights(write(changed, tmp_path / 'a.h5')) as weights:
        assert weights.texts('/model_weights', 'layer_names')
        with pytest.raises(UserError, match='a name longer than'):
            weights.texts('/model_weights', 'name')


ENDS = {
    'crash': ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'the HDF5 library ended on it: SIGSEGV'),
    'abort': ('import os; os.abort()', 'the HDF5 library ended on it: SIGABRT'),
    'no end': (LIMITED.format(cpu=.2, then='[None for _ in iter(int, 1)]'), 'of processor time'),
    'memory': (LIMITED.format(cpu=9, then='bytearray(2 ** 30)'), 'out of memory'),
    'long answer': (f'print("a" * {reader_process.MAX_LISTING_BYTES + 10})', 'damaged'),
    'no JSON': ('print("{")', 'damaged'),
    'other JSON': ('print("[1]")', 'damaged'),
}


@LINUX
@pytest.mark.parametrize('end', ENDS)
def test_however_the_child_ends_it_is_one_line(source, monkeypatch, end):
    code, cause = ENDS[end]
    monkeypatch.setattr(reader_process, 'START', code)
    assert cause in refusal(source)


def test_a_child_that_waits_is_ended(source, monkeypatch):
    monkeypatch.setattr(reader_process, 'START', 'import time; time.sleep(60)')
    monkeypatch.setattr(reader_process, 'WALL_SECONDS', .3)
    assert 'took more than 0 seconds' in refusal(source)


def test_a_child_that_cannot_start_is_no_fault_of_the_file(source, monkeypatch):
    monkeypatch.setattr(reader_process, 'START', 'import no_such_module')
    with pytest.raises(RuntimeError, match='no_such_module'):
        result(source)


def test_the_child_is_ended_when_the_caller_leaves_early(source):
    with FileIO(source) as stream:
        process = ListingProcess(FileWindow(stream, 0, source.stat().st_size), 'a.h5')
        process.close()
        assert process._process.returncode is not None


def test_nothing_in_the_current_folder_is_imported(source, tmp_path, monkeypatch):
    """The folder of downloads may hold a stranger's ``h5py.py``."""
    for name in ('h5py', 'json', 'numpy', 'sitecustomize'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("imported from the current folder")')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    assert len(result(source).arrays) == 336


def test_the_child_imports_nothing_heavy():
    code = 'import sys; from mgdet_plugin.weights.container import reader_process; ' \
           '[__import__(name) for name in reader_process.CHILD_IMPORTS]; ' \
           'print([name for name in ("torch", "mmdet", "mmengine", "mmcv", "cv2", "keras") if name in sys.modules])'
    environment = {**os.environ, 'PYTHONPATH': str(reader_process.PACKAGE.parent)}
    assert subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True,
                          check=True).stdout == '[]\n'


@LINUX
def test_the_child_can_open_no_file_and_write_to_none(tmp_path):
    then = 'try: open("/dev/null")\nexcept OSError as error: print(error.errno)\n' \
           'import os, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n' \
           'try: os.write(2, b"x")\nexcept OSError as error: print(error.errno)'
    path = json.dumps([str(reader_process.PACKAGE.parent), *sys.path])
    with (tmp_path / 'written').open('wb') as written:
        answer = subprocess.run([sys.executable, '-c', LIMITED.format(cpu=5, then=then), path], stdout=subprocess.PIPE,
                                stderr=written, text=True, check=True).stdout
    assert answer == f'{errno.EMFILE}\n{errno.EFBIG}\n' and not (tmp_path / 'written').read_bytes()


@LINUX
def test_works_under_limits_that_are_there_already(source):
    code = f'import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 2 ** 30,) * 2); ' \
           f'from mgdet_plugin.weights.container.archive import open_weights\n' \
           f'with open_weights({str(source)!r}) as weights: ' \
           f'print(len(weights.arrays))'
    environment = {**os.environ, 'PYTHONPATH': str(reader_process.PACKAGE.parent)}
    assert subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True,
                          check=True).stdout == '336\n'


def test_the_listing_is_small_and_quick_to_read(source):
    """A bound on what the parent must take in: a training file of the full network stays under 200 KB."""
    with SafeH5(BytesIO(tiny_bytes('keras3_model5.weights.h5')), 'a.h5') as h5:
        assert len(json.dumps(reader_process.answer_for(h5))) < 100_000
