"""What a training run left in its work folder: the guard's record and the scalars of every iteration."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.records import ratio

GUARD_FILE = 'guard.json'
VERSION = 1
STARTS = ('full', 'backbone', 'nothing')
ENDS = ('plan', 'early_stopping', 'guard')
LOSS = 'val/loss'
_MEND = 'bring the file back from a copy, or train again into a new folder'
OLD = 'old/'  # metrics of the second validation set
Numbers = dict[str, float]


@dataclass(frozen=True)
class StageStart:
    """A stage the run entered; epochs and iterations of the run from 0."""
    name: str
    first_epoch: int
    first_iter: int


@dataclass(frozen=True)
class Validation:
    """Figures of one validation.

    Attributes:
        epoch: Epochs done.
        iteration: Iterations done.
        stage: Name of the stage.
        metrics: Name -> value; NaN where it was not finite.
        weights: Part of the model -> relative distance from the weights the run started from.
        rolled_back: Whether the guard went back from it to earlier weights.
    """
    epoch: int
    iteration: int
    stage: str
    metrics: Numbers
    weights: Numbers
    rolled_back: bool = False


@dataclass(frozen=True)
class Event:
    """Something the guard saw; ``kind`` is drift, spike, divergence or nan, ``text`` a line for a person."""
    epoch: int
    iteration: int
    stage: str
    kind: str
    where: str
    values: Numbers
    actions: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Attributes:
        folder: The work folder.
        start: 'full', 'backbone' or 'nothing': what was pretrained.
        limit: Share by which a guarded loss may rise above its pretrained value.
        guarded: Names of guarded losses, without 'val/'.
        metric: Name of the metric that counts.
        stages: Those entered so far.
        pretrained: Figures of the loaded weights before the first step; empty if not measured.
        random: Figures of the same model drawn at random; empty if not measured.
        validations: In their order.
        events: In their order.
        bad_steps: Number of steps whose loss or gradient was not finite.
        ended: 'plan', 'early_stopping', 'guard', or None while the run goes on.
        training: Key of the log -> value a logged iteration, NaN where it has none; 'step' is the iteration, from 1.
            Empty without a log.
        best: Name and rule ('greater' or 'less') by which the best checkpoint is kept, where they are known.
    """
    folder: Path
    start: str
    limit: float
    guarded: tuple[str, ...]
    metric: str
    stages: tuple[StageStart, ...]
    pretrained: Numbers
    random: Numbers
    validations: tuple[Validation, ...]
    events: tuple[Event, ...]
    bad_steps: int
    ended: str | None
    training: dict[str, np.ndarray]
    best: tuple[str, ...] = ()

    @property
    def last(self) -> Validation | None:
        """The last validation."""
        return self.validations[-1] if self.validations else None

    def ratio(self, loss: str, validation: Validation) -> float:
        """A loss term of a validation over its pretrained value; NaN where either is missing or not finite.

        Args:
            loss: Its name, without 'val/'.
            validation: One of :attr:`validations`.
        """
        now, before = (figures.get(f'val/{loss}', math.nan) for figures in (validation.metrics, self.pretrained))
        return ratio(now, before)

    def epochs_at(self, steps: Sequence[float] | np.ndarray) -> np.ndarray:
        """Epochs done after a number of iterations, also where stages differ in batch size."""
        known = {each.first_iter: each.first_epoch for each in self.stages}
        known.update((each.iteration, each.epoch) for each in self.validations)
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
        return max([float(self.epochs_at([last_step])[0]), *(float(each.epoch) for each in self.validations),
                    *(float(each.first_epoch) for each in self.stages)])


def read_run(work_dir: str | Path) -> RunRecord:
    """Read the record of a run.

    Args:
        work_dir: The work folder of ``tools/train.py``.

    Raises:
        UserError: The folder or its ``guard.json`` is missing, or a file in it is damaged or of an unknown version.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError(f'there is no work folder {folder}; give the folder training wrote to (train.py --work-dir)')
    path = folder / GUARD_FILE
    if not path.is_file():
        raise UserError(f'{path} is not there, so nothing was measured while it trained; train with the default hook '
                        "drift_guard (configs/_base_/schedules/staged.py has it), and give the run's work folder")
    content = _Fields(path, _load(path))
    if content.get('version') != VERSION:
        raise UserError(f'{path} has version {content.get("version")!r}, known is {VERSION}; read it with the release '
                        'of mgdet that wrote it')
    validations = tuple(Validation(each.count('epoch'), each.count('iter'), each.text('stage'),
                                   each.numbers('metrics'), each.numbers('weights', {}),
                                   bool(each.get('rolled_back')))
                        for each in content.entries('validations'))
    events = tuple(Event(each.count('epoch'), each.count('iter'), each.text('stage'), each.text('kind'),
                         each.text('where'), each.numbers('values', {}), each.texts('actions'), each.text('text'))
                   for each in content.entries('events'))
    stages = tuple(StageStart(each.text('name'), each.count('first_epoch'), each.count('first_iter'))
                   for each in content.entries('stages'))
    baseline = _Fields(path, content.typed('baseline', dict, 'an object'), 'baseline')
    return RunRecord(
        folder, content.choice('start', STARTS), content.number('limit'), content.texts('guarded'),
        content.text('metric'), stages, baseline.numbers('pretrained', {}), baseline.numbers('random', {}), validations,
        events, content.count('bad_steps'),
        None if content.get('ended') is None else content.choice('ended', ENDS), _training(folder),
        tuple(map(str, content.get('best') or ())))


def _load(path: Path) -> dict[str, Any]:
    """An object from a JSON file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f'cannot read {path}: {error}; {_MEND}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is damaged: it holds a {type(content).__name__}, not an object; {_MEND}')
    return content


class _Fields:
    """Fields of an object in ``guard.json``, each checked when it is read."""

    def __init__(self, path: Path, content: Mapping[str, Any], where: str = '') -> None:
        self.path = path
        self.content = content
        self.where = where
        self.get = content.get

    def typed(self, key: str, kind: type | tuple[type, ...], what: str, default: Any = None) -> Any:
        """A field of a type."""
        value = self.content.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.damage(key, value, what)
        return value

    def damage(self, key: str, value: Any, what: str) -> UserError:
        """The error for a field."""
        place = f'{self.where}.{key}' if self.where else key
        seen = repr(value) if len(repr(value)) < 60 else f'{repr(value)[:57]}...'
        return UserError(f'{self.path} is damaged: {place} is {seen}, expected {what}; {_MEND}')

    def text(self, key: str) -> str:
        """A string."""
        return str(self.typed(key, str, 'a text'))

    def choice(self, key: str, values: Sequence[str]) -> str:
        """One of some strings."""
        value = self.text(key)
        if value not in values:
            raise self.damage(key, value, f'one of {", ".join(values)}')
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = float(self.typed(key, (int, float), 'a number'))
        if not math.isfinite(value):
            raise self.damage(key, value, 'a finite number')
        return value

    def count(self, key: str) -> int:
        """A whole number from 0."""
        value = int(self.typed(key, int, 'a whole number'))
        if value < 0:
            raise self.damage(key, value, 'a whole number from 0')
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Strings."""
        values = self.typed(key, list, 'a list of texts')
        if not all(isinstance(each, str) for each in values):
            raise self.damage(key, values, 'a list of texts')
        return tuple(values)

    def numbers(self, key: str, default: Any = None) -> Numbers:
        """Name -> number; null is a number that was not finite."""
        values = self.typed(key, dict, 'an object of numbers', default)
        for name, value in values.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise self.damage(f'{key}.{name}', value, 'a number or null')
        return {name: math.nan if value is None else float(value) for name, value in values.items()}

    def entries(self, key: str) -> list[_Fields]:
        """Objects of a list."""
        values = self.typed(key, list, 'a list of objects')
        for index, each in enumerate(values):
            if not isinstance(each, dict):
                raise self.damage(f'{key}[{index}]', each, 'an object')
        return [_Fields(self.path, each, f'{key}[{index}]') for index, each in enumerate(values)]


def _training(folder: Path) -> dict[str, np.ndarray]:
    """Scalars of the training iterations of a run and of the runs that resumed it.

    A resumed run writes a folder of its own. From its first step on it replaces what runs before it logged.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json'), key=lambda each: each.parts[-3]):
        found = {int(each['step']): each for each in _json_lines(path) if _is_training(each)}
        first = min(found, default=math.inf)
        lines = {step: each for step, each in lines.items() if step < first} | found
    if not lines:
        return {}
    steps = sorted(lines)
    keys = {key: None for step in steps for key, value in lines[step].items() if isinstance(value, (int, float))}
    return {key: np.array([float(lines[step].get(key, math.nan)) for step in steps]) for key in keys}


def _is_training(line: Mapping[str, Any]) -> bool:
    """Whether a line of the log is of a training iteration; those of validations have no rate and count epochs."""
    return 'loss' in line and isinstance(line.get('step'), int) and any(
        key == 'lr' or key.endswith('_lr') for key in line)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; a last line without its end is being written, or its writer was killed."""
    try:
        text = path.read_text(encoding='utf-8')
        found = [json.loads(line) for line in text[:text.rfind('\n') + 1].split('\n') if line.strip()]
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f'cannot read {path}: {error}; {_MEND}, or move it away: the curves of the training losses '
                        'and rates are then left out') from error
    return [each for each in found if isinstance(each, dict)]
