"""What the chaos tests share: a fork server, a folder in memory, and one training that nothing happened to."""
from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.chaos.trainings import EPOCHS, STEPS, Place, make
from tests.support.fork_server import ForkServer, shared_server

SHORT = re.compile(r'test_killed_at_random|test_a_careless_writer_is_caught.*epoch_2|test_a_disk_that_fails.*fsync|'
                   r'test_a_full_disk|test_a_folder_that_cannot|test_a_signal_ends_after_the_step.*[34]-15|test_soak.*(?<!short_soak)$')
"""Tests that are run without ``make chaos``, one of a kind: each training takes seconds."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get('CHAOS_KILLS'):
        for item in items:
            if Path(__file__).parent in item.path.parents and not SHORT.search(item.nodeid):
                item.add_marker(pytest.mark.skip(reason='a kind of fault that make chaos tries'))


@pytest.fixture(scope='session')
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a sync of a disk takes as long as a training here."""
    parent = Path('/dev/shm')
    free = shutil.disk_usage(parent).free if parent.is_dir() else 0
    folder = Path(tempfile.mkdtemp(prefix='mgdet_chaos_', dir=parent if free > 2**30 else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope='session')
def server() -> ForkServer:
    return shared_server()


@pytest.fixture(scope='session')
def whole(memory: Path, server: ForkServer) -> SimpleNamespace:
    """Config, folder and steps of the training that nothing happens to."""
    (memory / 'whole').mkdir()
    config = make(memory / 'whole')
    place, trace = Place(server, memory / 'whole' / 'place', config), memory / 'trace'
    assert place.end(trace=str(trace)) == 0, place.said()
    assert place.far() == (EPOCHS * STEPS, 0)
    return SimpleNamespace(config=config, run=place.run, steps=trace.read_text().splitlines(), folder=memory,
                           server=server)
