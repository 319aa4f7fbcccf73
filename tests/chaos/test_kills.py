"""``kill -9`` at every step by which a file comes to be, and at random: what is resumed is the run nothing happened to.

``make chaos`` tries every step and ``KILLS`` moments drawn from ``SEED``; the suite a few of both.
"""
from __future__ import annotations

import os
import random
import shutil
import signal
import time
from types import SimpleNamespace

import pytest

from tests.chaos.trainings import LONG, STEPS, Place, folder_differences

KILLS, SEED = int(os.environ.get('CHAOS_KILLS', 0)), int(os.environ.get('CHAOS_SEED', 0))
SHARE = os.environ.get('CHAOS_SHARE', '0/1' if KILLS else '')  # i/n: every nth of the cases from the ith on
SHORT = ('write start.pth', 'write on epoch_1.pth', 'replace last_checkpoint', 'replace best.pth', 'remove epoch_1.pth',
         'replace guard.json', 'unlink training.lock')
"""In the suite: the last step of each of these names."""
AGAIN = 0.3  # of the resumed trainings are killed, too


def shared(cases: list) -> list:
    """Those of the cases that this call of the chaos tests is for."""
    first, count = map(int, (SHARE or '0/1').split('/'))
    return cases[first::count]


def check_equal(place: Place, whole: SimpleNamespace) -> None:
    """Go on until the end, and hold the folder against the whole one's."""
    done, _ = place.far()
    assert place.end('--resume') == 0, place.said()
    ran, begun = place.far()
    assert done - begun <= STEPS or not ran, f'{done} iterations were done, and it went on from {begun}'
    assert folder_differences(place.run, whole.run) == []


def test_twice_the_same(whole: SimpleNamespace) -> None:
    """What is compared does not differ by itself."""
    place = Place(whole.server, whole.folder / 'twice', whole.config)
    assert place.end() == 0
    assert folder_differences(place.run, whole.run) == []


def test_killed_at_steps(whole: SimpleNamespace) -> None:
    """Before every step of the list, and in the middle of every write."""
    assert len(whole.steps) > 80
    last = {name: index for index, name in enumerate(whole.steps)}
    assert {*SHORT} <= {*last}
    failed = []
    for index in shared(list(range(len(whole.steps)))) if KILLS else [last[name] for name in SHORT]:
        place = Place(whole.server, whole.folder / f'step{index}', whole.config)
        assert place.end(kill_at=index) == -signal.SIGKILL
        try:
            check_equal(place, whole)
        except AssertionError as error:
            failed.append(f'killed before step {index}, {whole.steps[index]}: {error}')
        print(f'killed before step {index}, {whole.steps[index]}; wrong so far: {len(failed)}', flush=True)
        shutil.rmtree(place.folder)
    print(f'{len(shared(whole.steps)) if KILLS else len(SHORT)} kills at steps, {len(failed)} wrong')
    assert not failed, '\n'.join(failed)


def test_killed_at_random(whole: SimpleNamespace) -> None:
    """At moments of a training, and some of the resumed ones again."""
    draw = random.Random(f'{SEED} {SHARE}')
    began = time.monotonic()
    place = Place(whole.server, whole.folder / 'timed', whole.config)
    assert place.end() == 0
    length, kills, runs, failed = time.monotonic() - began, 0, 0, []
    while kills < (len(shared(list(range(KILLS)))) or 3):
        place = Place(whole.server, whole.folder / f'random{runs}', whole.config)
        runs, words, lost = runs + 1, [], []
        while not words or draw.random() < AGAIN:
            done, _ = place.far() if words else (0, 0)
            process = place.start(*words)
            moment = draw.uniform(0, length)
            if whole.server.wait(process, moment) is not None:  # it was faster
                break
            whole.server.signal(process, signal.SIGKILL)
            ended = whole.server.wait(process, LONG)
            if ended == 0:  # it was, by less
                break
            assert ended == -signal.SIGKILL
            kills, words = kills + 1, ['--resume']
            if words and place.far()[0]:
                lost.append(done - place.far()[1])
        try:
            assert all(each <= STEPS for each in lost), lost
            check_equal(place, whole)
        except AssertionError as error:
            failed.append(f'run {runs}: {error}')
        print(f'{kills} random kills in {runs} trainings; wrong so far: {len(failed)}', flush=True)
        shutil.rmtree(place.folder)
    print(f'{kills} random kills in {runs} trainings, {len(failed)} wrong')
    assert not failed, '\n'.join(failed)


@pytest.mark.parametrize('step', ['write on epoch_2.pth', 'write guard.json'])
def test_a_careless_writer_is_caught(step: str, whole: SimpleNamespace) -> None:
    """The harness sees what it is for: files written in place are found in part."""
    folder, trace = whole.folder / f'careless {step}', whole.folder / f'trace {step}'
    place = Place(whole.server, folder, whole.config)
    assert place.end(broken_writer=True, trace=str(trace)) == 0
    shutil.rmtree(folder)
    index = max(number for number, name in enumerate(trace.read_text().splitlines()) if name == step)
    place = Place(whole.server, folder, whole.config)
    assert place.end(broken_writer=True, kill_at=index) == -signal.SIGKILL
    left, kept = place.run / step.split()[-1], whole.run / step.split()[-1]
    assert left.stat().st_size < (kept if kept.exists() else whole.run / 'epoch_3.pth').stat().st_size
    with pytest.raises(AssertionError):
        check_equal(place, whole)
