"""Everything but ``kill -9`` that a machine and a person do to a training: one line, in bounded time, nothing half."""
from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos.trainings import LONG, RUN, STEPS, Place, folder_differences, make
from tests.support.fork_server import ForkServer

NOBODY = 65534
LEFT = re.compile(r'\.tmp$|^training\.lock$|^interrupted\.pth$')
WORKERS = ['--cfg-options', 'train_dataloader.num_workers=1', 'train_dataloader.persistent_workers=True']


def error_of(place: Place) -> str:
    """The one line about an error that a training ended with."""
    said = place.said()
    assert not any(line.startswith('Traceback') for line in said), '\n'.join(said)
    [line] = [line for line in said if line.startswith('error: ')]
    return line


def check_goes_on(place: Place, whole: SimpleNamespace, *words: str) -> None:
    """Nothing half written is there; resumed, the run is the one that nothing happened to."""
    assert not [each for each in place.folder.rglob('*') if LEFT.search(each.name) and each.name != 'interrupted.pth']
    assert place.end('--resume', *words) == 0, place.said()
    assert folder_differences(place.run, whole.run) == []


def wait_until(holds: Callable[[], object], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, 'it has not come to that'
        time.sleep(0.02)


FAILURES = [
    ('write on start.pth', errno.ENOSPC), ('open epoch_1.pth', errno.EIO), ('write on epoch_2.pth', errno.ENOSPC),
    ('fsync epoch_2.pth', errno.EIO), ('replace last_checkpoint', errno.EIO), ('write guard.json', errno.EIO),
    ('write results.csv', errno.ENOSPC), ('write best.pth', errno.EDQUOT), ('replace small.py', errno.EROFS)]


@pytest.mark.parametrize('step, number', FAILURES)
def test_a_disk_that_fails(step: str, number: int, whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / f'{step} {number}', whole.config)
    index = max(count for count, name in enumerate(whole.steps) if name == step)
    assert place.end(error_at=index, number=number) == 2
    assert f'cannot write {place.run}/{step.split()[-1]}: {os.strerror(number)}' in error_of(place)
    check_goes_on(place, whole)


def test_a_full_disk(whole: SimpleNamespace) -> None:
    """A file system of its own, large enough for the start and the first checkpoint."""
    place = Place(whole.server, whole.folder / 'full', whole.config)
    place.run.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1200k', 'tmpfs', str(place.run)],
                             capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip('needs the right to mount a file system')
    try:
        assert place.end() == 2
        assert 'No space left on device; nothing was written' in error_of(place)
        subprocess.run(['mount', '-o', 'remount,size=100m', str(place.run)], check=True)
        check_goes_on(place, whole)
    finally:
        subprocess.run(['umount', str(place.run)], check=True)


def test_a_file_may_not_grow(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'limit', whole.config)
    assert place.end(limits=dict(RLIMIT_FSIZE=100_000)) == 2
    assert 'File too large' in error_of(place)
    check_goes_on(place, whole)


def readable(folder: Path) -> bool:
    """Whether another user may look into a folder, as these tests need it."""
    return os.getuid() == 0 and all(each.stat().st_mode & 0o005 == 0o005 for each in (folder, *folder.parents))


def closed_folder(place: Place) -> str:
    place.run.mkdir()
    place.run.chmod(0o555)
    return f'no permission to write in {RUN}'


def blind_folder(place: Place) -> str:
    place.run.mkdir()
    place.run.chmod(0o333)
    return f'{RUN} cannot be read (Permission denied)'


def closed_parent(place: Place) -> str:
    place.folder.chmod(0o555)
    return f'no permission to write in {place.folder}'


def file_in_its_place(place: Place) -> str:
    place.run.write_text('a file')
    return f'{RUN} is no folder'


def file_above(place: Place) -> str:
    (place.folder / 'file').write_text('a file')
    place.options = ('--work-dir', 'file/run')
    return 'file is no folder'


def closed_pointer(place: Place) -> str:
    place.run.mkdir()
    place.run.chmod(0o777)
    (place.run / 'last_checkpoint').write_text('run/epoch_1.pth')
    (place.run / 'last_checkpoint').chmod(0)
    return f'{RUN}/last_checkpoint cannot be read (Permission denied)'


def folder_as_pointer(place: Place) -> str:
    (place.run / 'last_checkpoint').mkdir(parents=True)
    place.run.chmod(0o777)
    return f'{RUN}/last_checkpoint is no file'


def folder_as_figures(place: Place) -> str:
    (place.run / 'results.csv').mkdir(parents=True)
    place.run.chmod(0o777)
    return f'{RUN}/results.csv is no file'


def folder_as_checkpoint(place: Place) -> str:
    (place.run / 'epoch_9.pth').mkdir(parents=True)
    place.run.chmod(0o777)
    return f'{RUN}/epoch_9.pth is no file'


def pipe_as_pointer(place: Place) -> str:
    return pipe(place, 'last_checkpoint')


def pipe_as_lock(place: Place) -> str:
    return pipe(place, 'training.lock')


def pipe_as_config(place: Place) -> str:
    return pipe(place, place.config.name)


def pipe(place: Place, name: str) -> str:
    place.run.mkdir()
    place.run.chmod(0o777)
    os.mkfifo(place.run / name, 0o666)
    return f'{RUN}/{name} is no file'


@pytest.mark.parametrize('spoil', [closed_folder, blind_folder, closed_parent, file_in_its_place, file_above,
                                   closed_pointer, folder_as_pointer, folder_as_figures, folder_as_checkpoint,
                                   pipe_as_pointer, pipe_as_lock, pipe_as_config])
def test_a_folder_that_cannot_be_used(spoil: Callable[[Place], str], whole: SimpleNamespace) -> None:
    """Said before anything is built, and nothing is made."""
    place = Place(whole.server, whole.folder / spoil.__name__, whole.config)
    place.log.touch()
    place.folder.chmod(0o777)
    expected = spoil(place)
    if not readable(Path(__file__).parent):
        pytest.skip('needs to be root, to become another user, and a checkout that others may read')
    before = sorted(place.folder.rglob('*'))
    place.log.chmod(0o666)
    process = place.begin(place.log, '--resume', user=NOBODY)
    assert whole.server.wait(process, LONG) == 2, place.said()
    assert expected in error_of(place) and place.said() == [error_of(place)]
    assert sorted(place.folder.rglob('*')) == before


def interrupted(place: Place) -> str:
    said = place.said()
    assert not any(line.startswith(('Traceback', 'error')) for line in said), '\n'.join(said)
    [line] = [line for line in said if 'interrupted' in line]
    return line


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('done', [3, 4])
def test_a_signal_ends_after_the_step(number: int, done: int, whole: SimpleNamespace) -> None:
    """In the middle of the second epoch and at its end: nothing is lost."""
    place = Place(whole.server, whole.folder / f'signal {number} {done}', whole.config)
    process = place.start(calls=['slow_steps'])
    wait_until(lambda: place.at() == done)
    whole.server.signal(process, number)
    assert whole.server.wait(process, LONG) == 128 + number
    assert place.far()[0] == done
    assert interrupted(place).startswith(f'interrupted after iteration {done} of 6, which {place.run}/interrupted.pth '
                                         'holds; to go on: python tools/train.py ')
    check_goes_on(place, whole)
    assert place.far() == (6, done)


def test_a_signal_in_a_validation(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'validating', whole.config)
    process = place.start(calls=['slow_validation'])
    wait_until(lambda: place.far()[0] == STEPS)
    time.sleep(1)
    whole.server.signal(process, signal.SIGTERM)
    assert whole.server.wait(process, LONG) == 128 + signal.SIGTERM
    assert 'after iteration 2 of 6' in interrupted(place)
    check_goes_on(place, whole)


def test_a_second_signal_ends_at_once(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'twice pressed', whole.config)
    process = place.start(calls=['slow_steps'])
    wait_until(lambda: place.at() == 4)
    whole.server.signal(process, signal.SIGINT)
    time.sleep(1.2)
    whole.server.signal(process, signal.SIGINT)
    assert whole.server.wait(process, 20) == 128 + signal.SIGINT
    assert interrupted(place).startswith('interrupted; to go on: ')
    check_goes_on(place, whole)
    assert place.far() == (6, STEPS)


def test_a_step_that_does_not_end_is_not_waited_for(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'endless', whole.config)
    process = place.start(calls=['endless_steps'])
    wait_until(lambda: place.at() == 1)
    whole.server.signal(process, signal.SIGTERM)
    assert whole.server.wait(process, 20) == 128 + signal.SIGTERM
    assert interrupted(place).startswith('interrupted; to go on: ')
    check_goes_on(place, whole)


def test_nohup(whole: SimpleNamespace) -> None:
    """A training that was told to outlive its terminal does."""
    place = Place(whole.server, whole.folder / 'nohup', whole.config)
    process = place.start(calls=['ignore_hangup'])
    wait_until(lambda: place.far()[0] == 1)
    whole.server.signal(process, signal.SIGHUP)
    assert whole.server.wait(process, LONG) == 0
    assert folder_differences(place.run, whole.run) == []


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    return [int(each) for each in Path(f'/proc/{process}/task/{process}/children').read_text().split()]


def test_a_process_that_loads_images_is_killed(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'worker', whole.config)
    process = place.start(*WORKERS, calls=['slow_steps'])
    wait_until(lambda: place.at() == 4)
    [worker] = children(process)
    os.kill(worker, signal.SIGKILL)
    assert whole.server.wait(process, LONG) == 2
    assert 'a process that loads images was killed' in error_of(place) and '--resume goes on' in error_of(place)
    check_goes_on(place, whole)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_no_process_that_loads_images_is_left(number: int, whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / f'workers {number}', whole.config)
    process = place.start(*WORKERS, calls=['slow_steps'])
    wait_until(lambda: place.at() == 4)
    [worker] = children(process)
    os.kill(process, number)
    assert whole.server.wait(process, LONG) == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGTERM:
        assert not Path(f'/proc/{worker}').exists()
    else:
        assert place.end('--resume') == 0, 'a worker that has not noticed yet must not hold the folder'
        wait_until(lambda: not Path(f'/proc/{worker}').exists(), 20)


def test_two_trainings_in_one_folder(whole: SimpleNamespace) -> None:
    """The second is refused, and the first does not notice; what a killed one left of its lock holds nobody up."""
    place = Place(whole.server, whole.folder / 'two', whole.config)
    first = place.start(calls=['slow_steps'])
    wait_until(lambda: place.far()[0] == 1)
    log = place.folder / 'second'
    for words in ([], ['--resume']):
        second = place.begin(log, *words)
        assert whole.server.wait(second, LONG) == 2
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and all(
        line.startswith(f'error: another training is at work in run (process {first} on ') for line in lines)
    assert whole.server.wait(first, LONG) == 0
    assert folder_differences(place.run, whole.run) == []


QUIET = dict(
    clock=dict(calls=['clock_jumps_back']), c=dict(environment=dict(LC_ALL='C', LANG=None), calls=['plain_locale']),
    turkish=dict(environment=dict(LC_ALL='tr_TR.UTF-8'), calls=['turkish_locale']),
    homeless=dict(environment=dict(HOME='/nowhere', TMPDIR='/nowhere', XDG_CACHE_HOME=None),
                  calls=['nowhere_for_temporary_files']),
    no_home=dict(environment=dict(HOME=None, TMPDIR=None)))
"""What a training does not notice."""


@pytest.mark.parametrize('name', QUIET)
def test_what_a_training_does_not_notice(name: str, whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / name, whole.config)
    code = place.end(**QUIET[name])
    if code and any('unsupported locale' in line for line in place.said()):
        pytest.skip('this locale is not installed')
    assert code == 0, place.said()
    assert folder_differences(place.run, whole.run) == []


def ended_in_a_line(place: Place, *words: str, **fault: Any) -> str:
    code = place.end(*words, **fault)
    assert code is not None, 'it hangs'
    assert code == 2, place.said()
    return error_of(place)


def test_few_open_files(whole: SimpleNamespace) -> None:
    """Too few are refused at once; a low limit that may be raised is."""
    place = Place(whole.server, whole.folder / 'files', whole.config)
    assert 'needs a limit of at least 128 (ulimit -n), got 18' in ended_in_a_line(
        place, *WORKERS, limits=dict(RLIMIT_NOFILE=18))
    assert place.end(calls=['low_file_limit']) == 0, place.said()
    assert folder_differences(place.run, whole.run) == []


def test_little_memory(whole: SimpleNamespace) -> None:
    place = Place(whole.server, whole.folder / 'memory', whole.config)
    assert 'memory ran out' in ended_in_a_line(place, calls=['little_memory'])
    check_goes_on(place, whole)


def test_tiny_shared_memory(tmp_path: Path, server: ForkServer) -> None:
    """Two processes that load images, and 64 kB to give them over in."""
    place = Place(server, tmp_path / 'place', make(tmp_path), *WORKERS)
    process = place.start(calls=['tiny_shared_memory'])
    code = server.wait(process, LONG)
    if any('Operation not permitted' in line for line in place.said()):
        pytest.skip('needs the right to mount a file system')
    assert code == 2, place.said()
    assert '/dev/shm' in error_of(place)
    assert place.end('--resume') == 0


def test_a_finished_run_completes_its_page(whole: SimpleNamespace, memory: Path) -> None:
    """Killed between the end of the training and the page about it: --resume writes the page."""
    (memory / 'page').mkdir()
    place = Place(whole.server, memory / 'page' / 'place', make(memory / 'page', evaluate=True))
    assert place.end() == 0
    page = place.run / 'evaluation'
    there = sorted(each.name for each in page.iterdir())
    shutil.rmtree(page)
    assert place.end('--resume') == 0
    assert sorted(each.name for each in page.iterdir()) == there
    assert place.at() == 0
