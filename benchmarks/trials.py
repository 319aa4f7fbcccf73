"""Training runs side by side, each in a process of its own with one thread: what benchmarks of learning compare.

A run that ended is not run again: a benchmark that was cut off goes on where it stopped. A run of another config is; to
run one anew after a change of code, remove its folder.
"""
from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.runs.run import logged_lines
from mgdet_plugin.runs.run_axes import png

ROOT = Path(__file__).resolve().parents[1]
FINISHED = 'finished.json'
LOG = 'train.log'
ONE_PROCESS: dict[str, Any] = {'evaluate': False} | {
    f'{split}_dataloader.{key}': value for split in ('train', 'val', 'test')
    for key, value in (('num_workers', 0), ('persistent_workers', False))}
"""Options with which a run takes one core: its loaders have no processes of their own, and no page is made of it."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A run of a config.

    Attributes:
        name: Of its work folder.
        config: Path of the config from the project's root.
        seed: Of the run.
        options: Key with dots -> value, merged into the config as by ``--cfg-options``; set after the seed.
    """
    name: str
    config: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A run that ended.

    Attributes:
        trial: What was run.
        folder: Its work folder.
        seconds: How long it took, process start included.
    """
    trial: Trial
    folder: Path
    seconds: float


def run_trials(trials: Sequence[Trial], folder: Path, jobs: int, say: Say = print) -> list[Finished]:
    """Run trials, several at once.

    Args:
        trials: The runs.
        folder: Where each gets its work folder.
        jobs: Runs at once.
        say: Called with a line at the start and one for each run that ends.

    Returns:
        The runs, in the order given.

    Raises:
        UserError: A folder cannot be made, another benchmark trains in it, or a run failed; those beside it are
            finished, no other is begun.
    """
    folder = folder.resolve()  # runs have another working directory
    # Here and not in the threads, which share what reading imports.
    configs = [str(config_of(trial).pretty_text) for trial in trials]
    planned = list(zip(trials, configs))
    found = [_found(trial, config, folder / trial.name) for trial, config in planned]
    left = found.count(None)
    say(f'{left} of {len(trials)} runs to train, {min(jobs, left) or "none"} at once, in {folder}')
    if not left:
        return [each for each in found if each is not None]
    with _alone(folder):
        return _run_all(planned, folder, jobs, say)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other benchmark trains in the folder, which is made: it would take a run at work for half of one.

    The runs of a benchmark that was killed hold no lock.
    """
    lock = FileLock(folder / '.lock', timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f'another benchmark trains in {folder}; wait for its end, or give this one another --out'
                        ) from None
    except OSError as error:
        raise UserError(f'cannot make or lock the folder {folder}: {error.strerror or error}') from error
    try:
        yield
    finally:
        lock.release()


def _run_all(planned: Sequence[tuple[Trial, str]], folder: Path, jobs: int, say: Say) -> list[Finished]:
    pool = ThreadPoolExecutor(jobs)

    def run(trial: Trial, config: str) -> Finished:
        try:
            return _run(trial, config, folder / trial.name, say)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # before this thread takes the next one
            raise

    try:
        futures = [pool.submit(run, trial, config) for trial, config in planned]
        wait(futures, return_when=FIRST_EXCEPTION)
    finally:
        pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]  # those that were cancelled come after the one that failed


def find_finished(trials: Sequence[Trial], folder: Path) -> list[Finished]:
    """Those of trials that ended, none is run.

    Args:
        trials: The runs.
        folder: Where each has its work folder.
    """
    folder = folder.resolve()
    found = [_found(trial, str(config_of(trial).pretty_text), folder / trial.name) for trial in trials]
    return [each for each in found if each is not None]


def config_of(trial: Trial) -> Config:
    """The config of a run, its seed and options merged in."""
    cfg = Config.fromfile(ROOT / trial.config)
    cfg.merge_from_dict({'randomness.seed': trial.seed, **copy.deepcopy(dict(trial.options))})  # it takes _delete_ out
    return cfg


def validations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(Epoch, metrics) of each validation a run logged."""
    return [(int(line['step']), {key: value for key, value in line.items() if isinstance(value, (int, float))})
            for path in sorted(folder.glob('*/vis_data/scalars.json')) for line in logged_lines(path)
            if any(key.endswith('bbox_mAP') for key in line)]


def last_weights(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return Path((folder / 'last_checkpoint').read_text().strip())


def write_report(folder: Path, name: str, plain: Mapping[str, Any], text: str, figure: Figure) -> list[Path]:
    """Write ``name.json``, ``name.md`` and ``name.png``, all of them or none.

    Args:
        folder: Where, an existing folder.
        name: Of the files without their suffix.
        plain: All that was measured, plain types.
        text: The report for a person.
        figure: Its plot.

    Returns:
        Their paths.

    Raises:
        UserError: A file cannot be written.
    """
    contents = {'.json': (json.dumps(plain, indent=1) + '\n').encode(), '.md': text.encode(), '.png': png(figure)}
    writers = {folder / f'{name}{suffix}': methodcaller('write', content) for suffix, content in contents.items()}
    write_together(writers)
    return list(writers)


def _found(trial: Trial, config: str, folder: Path) -> Finished | None:
    record = folder / FINISHED
    found = json.loads(record.read_text()) if record.is_file() else {}
    return Finished(trial, folder, found['seconds']) if found.get('config') == config else None


def _run(trial: Trial, config: str, folder: Path, say: Say) -> Finished:
    found = _found(trial, config, folder)
    if found is not None:
        return found
    record = folder / FINISHED
    try:
        if folder.exists():
            shutil.rmtree(folder)  # what another config or half of this run left
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {folder} anew: {error.strerror or error}') from error
    path = folder / f'{Path(trial.config).stem}.py'
    path.write_text(config)
    start = time.perf_counter()
    with (folder / LOG).open('w') as log:
        done = subprocess.run([sys.executable, str(ROOT / 'tools' / 'train.py'), str(path), '--work-dir', str(folder)],
                              stdout=log, stderr=subprocess.STDOUT, check=False, cwd=ROOT,
                              env={**os.environ, 'OMP_NUM_THREADS': '1'})
    seconds = time.perf_counter() - start
    if done.returncode:
        last = ((folder / LOG).read_text().strip().splitlines() or ['no output'])[-1]
        raise UserError(f'the run {trial.name} ended with exit {done.returncode}: {last} (all of it: {folder / LOG})')
    write_together({record: lambda file: file.write(json.dumps(dict(config=config, seconds=seconds)).encode())})
    say(f'{trial.name}: {seconds:.0f} s')
    return Finished(trial, folder, seconds)
