"""Arrays by key: what is put is found, within its bound, and a file leaves nothing behind."""
import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from mgdet_plugin.common.array_store import ArrayStore
from mgdet_plugin.common.errors import UserError
from tests.conftest import ROOT

ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), ('b', 1): np.array([1.5, -2], np.float16), 3: np.ones(0)}


@pytest.mark.parametrize('in_file', [False, True])
def test_what_is_put_is_found_bit_for_bit(tmp_path, in_file):
    store = ArrayStore(tmp_path if in_file else None)
    assert all(store.put(key, array) for key, array in ARRAYS.items())
    assert set(store) == set(ARRAYS) and len(store) == 3 and 'c' not in store and store.get('c') is None
    for key, array in ARRAYS.items():
        assert store[key].dtype == array.dtype and np.array_equal(store[key], array) and key in store
    assert list(tmp_path.iterdir()) == []  # the file has no name
    store.close()
    assert len(store) == 0 and not store.put('a', np.ones(1))


@pytest.mark.parametrize('in_file', [False, True])
def test_no_more_than_the_bound(tmp_path, in_file):
    store = ArrayStore(tmp_path if in_file else None, at_most=20)
    assert store.put(1, np.zeros(2)) and not store.put(2, np.zeros(1))
    assert store.put(3, np.zeros(1, np.int32))
    assert set(store) == {1, 3} and store.bytes == 20


def test_a_full_disk_ends_what_is_put_and_nothing_else(tmp_path, monkeypatch):
    store = ArrayStore(tmp_path)
    store.put(1, np.ones(4))
    [file] = store._files

    class Full:
        def write(self, content):
            raise OSError(errno.ENOSPC, 'No space left on device')

        def __getattr__(self, name):
            return getattr(file, name)

    monkeypatch.setattr(store, '_files', [Full()])
    assert not store.put(2, np.ones(4))
    monkeypatch.setattr(store, '_files', [file])
    assert not store.put(2, np.ones(4)) and np.array_equal(store[1], np.ones(4)) and 2 not in store


def test_a_file_cut_short_is_noticed(tmp_path):
    store = ArrayStore(tmp_path)
    store.put(1, np.ones(4))
    store.put(2, np.ones(4))
    store._files[0].truncate(40)
    assert store.get(2) is None and np.array_equal(store[1], np.ones(4))


def test_a_killed_process_leaves_nothing(tmp_path):
    """Not even a name, and what one left that was killed while it opened its file is gone with the next."""
    (tmp_path / '.arrays-0011223344556677-0').write_bytes(b'left over')
    code = ('import os, sys, numpy; from pathlib import Path; from mgdet_plugin.common.array_store import ArrayStore; '
            'store = ArrayStore(Path(sys.argv[1])); store.put(1, numpy.ones(1000)); print(len(store), flush=True); '
            'sys.stdin.read()')
    with subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}) as process:
        assert process.stdout.readline() == '1\n'
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'cannot keep arrays in .*/file/run: Not a directory; keep them in memory'):
        ArrayStore(tmp_path / 'file' / 'run')
