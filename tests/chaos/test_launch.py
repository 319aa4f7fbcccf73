"""A process of a launch by torchrun is killed, stops answering, or all are asked to end: a message in bounded time."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.test_kills import KILLS
from tests.chaos.trainings import make
from tests.compat.test_launch_compat import free_port
from tests.conftest import ROOT
from tests.support.fork_server import environment

pytestmark = pytest.mark.skipif(not KILLS, reason='two processes that import everything, a minute each: make chaos')
TIMEOUT = 15  # seconds of env_cfg.dist_cfg.timeout
GRACE = 30  # seconds that torchrun gives a process between SIGTERM and SIGKILL


class Launch:
    """Two processes that train for long."""

    def __init__(self, folder: Path, config: Path, *words: str) -> None:
        self.log, self.run = folder / 'said', folder / 'run'
        with self.log.open('a') as stream:
            self.process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc_per_node=2',
                 f'--master_port={free_port()}', str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', 'run',
                 '--launcher', 'pytorch', *words, '--cfg-options', f'env_cfg.dist_cfg.timeout={TIMEOUT}',
                 'train_dataloader.batch_size=2'], cwd=folder, stdout=stream, stderr=stream, start_new_session=True,
                env={**environment(), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'})

    def wait_for(self, name: str) -> None:
        """Until a file of the run is there."""
        end = time.monotonic() + 300
        while not (self.run / name).exists():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        for child in Path(f'/proc/{self.process.pid}/task/{self.process.pid}/children').read_text().split():
            if f'\0RANK={number}\0' in Path(f'/proc/{child}/environ').read_text():
                return int(child)
        raise AssertionError(f'there is no rank {number}')

    def said(self) -> list[str]:
        """What the processes printed, without what torchrun adds."""
        return self.log.read_text().splitlines()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[tuple[Path, Path, list[Launch]]]:
    config = make(tmp_path, **{'train_cfg.val_interval': 1000})
    text = config.read_text().replace('find_unused_parameters=False', 'find_unused_parameters=True')
    config.write_text(text + "\nfor each in stages:\n    each['epochs'] = 300\ndel each\n")
    begun: list[Launch] = []
    yield tmp_path, config, begun
    for each in begun:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


@pytest.mark.parametrize('number, bound', [(signal.SIGKILL, GRACE + 15), (signal.SIGSTOP, TIMEOUT + GRACE + 15)])
def test_a_rank_that_is_gone(number: int, bound: float, launch: tuple[Path, Path, list[Launch]]) -> None:
    folder, config, begun = launch
    begun.append(Launch(folder, config))
    begun[0].wait_for('epoch_2.pth')
    os.kill(begun[0].rank(1), number)
    since = time.monotonic()
    code = begun[0].process.wait(timeout=4 * bound)
    took = time.monotonic() - since
    print(f'{signal.Signals(number).name} to rank 1: ended with {code} after {took:.0f} s')
    assert code != 0 and took < 2 * bound
    said = begun[0].said()
    assert any('another process of the launch' in line for line in said) or (number == signal.SIGKILL and any(
        'interrupted' in line for line in said)), '\n'.join(said[-30:])
    newest = max(int(each.stem.removeprefix('epoch_')) for each in begun[0].run.glob('epoch_*.pth'))
    begun.append(Launch(folder, config, '--resume'))
    begun[1].wait_for(f'epoch_{newest + 2}.pth')
    begun[1].process.send_signal(signal.SIGTERM)
    assert begun[1].process.wait(timeout=2 * GRACE) != 0
    [line] = [line for line in begun[1].said() if 'interrupted after iteration' in line]
    print(line)
    assert (begun[1].run / 'interrupted.pth').is_file() and not list(begun[1].run.glob('.*.tmp'))
