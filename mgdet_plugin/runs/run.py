"""What a training run left in its work folder: the guard's record and the scalars of every iteration."""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import FILE, MEND, GuardRecord, Validation
from mgdet_plugin.common.records import ratio

LOSS = 'val/loss'
OLD = 'old/'  # metrics of the second validation set


@dataclass
class Run(GuardRecord):
    """A run, finished or not: its record, and what it logged.

    Attributes:
        folder: The work folder.
        training: Key of the log -> value a logged iteration, NaN where it has none; 'step' is the iteration, from 1.
            Empty without a log.
    """
    folder: Path = Path()
    training: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def last(self) -> Validation | None:
        """The last validation."""
        return self.validations[-1] if self.validations else None

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
    """Read the record of a run from the work folder of ``tools/train.py``.

    Raises:
        UserError: The folder or its ``guard.json`` is missing, or a file in it is damaged or of an unknown version.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError(f'there is no work folder {folder}; give the folder training wrote to (train.py --work-dir)')
    path = folder / FILE
    if not path.is_file():
        raise UserError(f'{path} is not there, so nothing was measured while it trained; train with the default hook '
                        "drift_guard (configs/_base_/schedules/staged.py has it), and give the run's work folder")
    return Run(**vars(GuardRecord.read(path)), folder=folder, training=_training(folder))


def _training(folder: Path) -> dict[str, np.ndarray]:
    """Scalars of the training iterations of a run and of the runs that resumed it.

    A resumed run writes a folder of its own. From its first step on it replaces what runs before it logged.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json'), key=lambda each: each.parts[-3]):
        # Lines of validations have no rate and count epochs.
        found = {each['step']: each for each in logged_lines(path) if 'loss' in each and isinstance(
            each.get('step'), int) and any(key == 'lr' or key.endswith('_lr') for key in each)}
        first = min(found, default=math.inf)
        lines = {step: each for step, each in lines.items() if step < first} | found
    steps = sorted(lines)
    keys = {key: None for step in steps for key, value in lines[step].items() if isinstance(value, (int, float))}
    return {key: np.array([float(lines[step].get(key, math.nan)) for step in steps]) for key in keys}


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
