"""What a training run left in its work folder: the guard's record and the scalars of every iteration."""
from __future__ import annotations

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import FILE, MEND, GuardRecord, Validation, is_zero
from mgdet_plugin.common.records import ratio

LOSS = 'val/loss'


@dataclass
class Run(GuardRecord):
    """A run, finished or not: its record, and what it logged.

    Attributes:
        folder: The work folder.
        recorded: Whether a guard recorded it; else it is what its log tells, and ``start`` is empty: not known.
        training: Key of the log -> value a logged iteration, NaN where it has none; 'step' is the iteration, from 1.
            Empty without a log.
    """
    folder: Path = Path()
    recorded: bool = True
    training: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def last(self) -> Validation | None:
        """The last validation."""
        return self.validations[-1] if self.validations else None

    @property
    def silent(self) -> list[str]:
        """Terms of the validation loss that are 0 throughout, as the class loss of a single class is."""
        names = dict.fromkeys(name for each in self.figures for name in each if name.startswith(f'{LOSS}_'))
        return [name for name in names if is_zero(name, *self.figures)]

    def ratio(self, loss: str, validation: Validation) -> float:
        """A loss term, named without 'val/', over its pretrained value; NaN where either is missing or not finite."""
        now, before = (figures.get(f'val/{loss}', math.nan) for figures in (validation.metrics, self.pretrained))
        return ratio(now, before)

    def epochs_at(self, steps: Sequence[float] | np.ndarray) -> np.ndarray:
        """Epochs done after a number of iterations, also where stages differ in batch size."""
        known = {each.first_iter: each.first_epoch for each in self.stages}
        known.update((each.iter, each.epoch) for each in self.validations)
        known[0] = 0
        points = sorted(known.items())
        if len(points) == 1 and 'epoch' in self.training:
            logged, within = self.training['step'], self.training['epoch']  # the epoch it is in, counted from 1
            done = logged[within < within[-1]]
            points.append((int(done[-1]), int(within[-1]) - 1) if len(done) else (int(logged[-1]), 1))
        at, epochs = np.array(points, dtype=float).T
        places = np.asarray(steps, dtype=float)
        if len(at) == 1:
            return places
        slope = (epochs[-1] - epochs[-2]) / (at[-1] - at[-2])
        return np.where(places > at[-1], epochs[-1] + (places - at[-1]) * slope, np.interp(places, at, epochs))

    @property
    def epochs(self) -> float:
        """How many epochs the record reaches."""
        last_step = self.training['step'][-1] if self.training else 0
        return float(max([self.epochs_at([last_step])[0], *(each.epoch for each in self.validations),
                          *(each.first_epoch for each in self.stages)]))


def read_run(work_dir: str | Path) -> Run:
    """Read what a run left in the work folder of ``tools/train.py``: the guard's record, else its log alone.

    Raises:
        UserError: The folder is missing or holds neither, or a file in it is damaged or of an unknown version.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError(f'there is no work folder {folder}; give the folder training wrote to (train.py --work-dir)')
    path, training = folder / FILE, _training(folder)
    if path.is_file():
        run = Run(**vars(GuardRecord.read(path)), folder=folder, training=training)
    else:
        run = Run(start=_start_of(folder), folder=folder, recorded=False, training=training,
                  validations=_validations(folder, training))
        if not training and not run.validations:
            raise UserError(f'{folder} holds neither a {FILE}, which the default hook drift_guard writes, nor a '
                            "vis_data/scalars.json with losses: no run was logged there; give a run's work folder")
    if not any(run.metric in each for each in run.figures):
        run.metric = next(iter(run.mean_aps()), run.metric)
    run.guarded = [name for name in run.guarded if f'val/{name}' not in run.silent]
    return run


def _start_of(folder: Path) -> str:
    """'nothing' where the only config in a work folder, as a run leaves it there, loads no weights; '' if unknown.

    It is read as data, not run.
    """
    configs = list(folder.glob('*.py'))
    try:
        tree = ast.parse(configs[0].read_text(encoding='utf-8')) if len(configs) == 1 else ast.Module([], [])
    except (ValueError, SyntaxError, RecursionError, OSError):
        return ''
    values = {target.id: each.value for each in tree.body if isinstance(each, ast.Assign)
              for target in each.targets if isinstance(target, ast.Name)}
    loaded = values.get('load_from')
    pretrained = any(isinstance(each, ast.Constant) and each.value == 'Pretrained' for each in ast.walk(tree))
    return 'nothing' if isinstance(loaded, ast.Constant) and loaded.value is None and not pretrained else ''


def _logs(folder: Path) -> list[list[dict[str, Any]]]:
    """The lines of each log of a run and of the runs that resumed it, which have folders of their own; in order."""
    return [logged_lines(path) for path in sorted(folder.glob('*/vis_data/scalars.json'),
                                                  key=lambda each: each.parts[-3])]


def _is_training(line: dict[str, Any]) -> bool:
    """Whether a line is of training iterations; those of validations have no rate and count epochs."""
    return 'loss' in line and isinstance(line.get('step'), int) and any(
        key == 'lr' or key.endswith('_lr') for key in line)


def _training(folder: Path) -> dict[str, np.ndarray]:
    """Scalars of the training iterations of a run; from its first step on a resumed one replaces what was logged."""
    lines: dict[int, dict[str, Any]] = {}
    for log in _logs(folder):
        found = {each['step']: each for each in log if _is_training(each)}
        first = min(found, default=math.inf)
        lines = {step: each for step, each in lines.items() if step < first} | found
    steps = sorted(lines)
    keys = {key: None for step in steps for key, value in lines[step].items() if isinstance(value, (int, float))}
    return {key: np.array([float(lines[step].get(key, math.nan)) for step in steps]) for key in keys}


def _validations(folder: Path, training: dict[str, np.ndarray]) -> list[Validation]:
    """The validations a log tells of; the later of two of one epoch counts."""
    found = {each['step']: each for log in _logs(folder) for each in log
             if isinstance(each.get('step'), int) and each['step'] and not _is_training(each)}
    steps, epochs = training.get('step', np.array([])), training.get('epoch', np.array([]))
    iters = {int(epoch): int(step) for step, epoch in zip(steps, epochs)}  # the last logged of each epoch
    return [Validation(epoch=epoch, iter=iters.get(epoch, epoch), stage='', metrics={
        name: float(value) for name, value in found[epoch].items()
        if type(value) in (int, float) and name not in ('step', 'time', 'data_time')}) for epoch in sorted(found)]


def logged_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; a last line without its end is being written, or its writer was killed.

    Raises:
        UserError: The file is damaged.
    """
    try:
        text = path.read_text(encoding='utf-8')
        found = [json.loads(line) for line in text[:text.rfind('\n') + 1].split('\n') if line.strip()]
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f'cannot read {path}: {error}; {MEND}, or move it away: the curves of the training losses '
                        'and rates are then left out') from error
    return [each for each in found if isinstance(each, dict)]
