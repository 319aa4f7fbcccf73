"""What the guard knows of a run: kept in every checkpoint, and as ``guard.json`` in the run's folder."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.metric_names import mean_aps
from mgdet_plugin.common.records import BELOW_ZERO, Damage, Numbers, finite, from_record, need, ratio, typed

KEY = 'guard'  # in a checkpoint
FILE = 'guard.json'
VERSION = 1
STARTS = ('full', 'backbone', 'nothing')
ENDS = ('plan', 'early_stopping', 'guard')
LABELS, AGREEMENT = JUDGES = ('labels', 'agreement')
AT_LEAST = 0.95  # of the old domain's mean AP must be left
OLD = 'old/'  # figures of the second validation set, of the domain the weights come from
MEND = 'bring the file back from a copy, or train again into a new folder'


class Keep(TypedDict, total=False):
    """What a run with ``keep`` is held by, see :class:`GuardRecord`."""
    images: int
    copies: int
    held_out: int
    by: str
    at_least: float
    share: float
    weight: float
    form: str
    source: str


@dataclass(kw_only=True)
class StageStart:
    """A stage the run entered; epochs and iterations of the run from 0."""
    index: int = 0
    name: str
    first_epoch: int
    first_iter: int


@dataclass(kw_only=True)
class Validation:
    """Figures of one validation.

    Attributes:
        epoch: Epochs done.
        iter: Iterations done.
        stage: Name of the stage.
        metrics: Name -> value; NaN where it was not finite.
        ratios: Loss term -> how many times that of the loaded weights it is.
        weights: Part of the model -> relative distance from the weights the run started from.
        rolled_back: Whether the guard went back from it to earlier weights.
    """
    epoch: int
    iter: int
    stage: str
    metrics: Numbers
    ratios: Numbers = field(default_factory=dict)
    weights: Numbers = field(default_factory=dict)
    rolled_back: bool = False


@dataclass(kw_only=True)
class Event:
    """Something the guard saw; ``text`` is a line for a person.

    ``kind`` is drift, forgetting, spike, divergence, nan or mismatch.
    """
    epoch: int
    iter: int
    stage: str
    kind: str
    where: str
    values: Numbers = field(default_factory=dict)
    actions: list[str]
    text: str


@dataclass
class GuardRecord:
    """Baselines, validations and events of a run.

    Attributes:
        start: The plan's start: 'full', 'backbone' or 'nothing' was pretrained.
        limit: By how much a guarded loss may exceed that of the loaded weights.
        guarded: Names of the guarded losses, without 'val/'.
        metric: The main metric.
        data: A hash of the validation set and what a loss on it means.
        pretrained: Name -> value of the loaded weights on the validation set(s), or of those they were trained from.
        random: The same of a random start.
        subset: Losses of the loaded weights on the subset that is measured in training.
        subset_images: Its size.
        best: Name and rule ('greater' or 'less') by which the best checkpoint is kept; empty if none is.
        stages: Stages entered.
        validations: In their order.
        events: What the guard saw and did.
        bad_steps: Steps skipped because a number was not finite.
        bad_in_row: The last so many of the steps done were.
        poisoned: Whether accumulated gradients wait that will make no step.
        rollbacks: How often weights were put back.
        good: Epoch and iteration of ``last_good.pth``; None while that is the start.
        held_epoch: Epoch after which the stage was made longer last.
        compared: Whether the first training losses were held against the validation's.
        ended: 'plan', 'early_stopping' or 'guard' at the end; None while the run goes on.
        keep: What a run with ``keep`` is held by, empty without: 'images' it is held on, their 'source' and 'copies' of
            new ones, 'share' of a batch, 'weight' and 'form'; images 'held_out', what judges on them 'by', and
            'at_least' what share of the old domain's mean AP must be left.
    """
    start: str = 'full'
    limit: float = 0.2
    guarded: list[str] = field(default_factory=list)
    metric: str = ''
    data: str = ''
    pretrained: Numbers = field(default_factory=dict)
    random: Numbers = field(default_factory=dict)
    subset: Numbers = field(default_factory=dict)
    subset_images: int = 0
    best: list[str] = field(default_factory=list)
    stages: list[StageStart] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    bad_steps: int = 0
    bad_in_row: int = 0
    poisoned: bool = False
    rollbacks: int = 0
    good: list[int] | None = None
    held_epoch: int = field(default=-1, metadata=BELOW_ZERO)
    compared: bool = False
    ended: str | None = None
    keep: Keep = field(default_factory=lambda: Keep())

    @property
    def figures(self) -> list[Numbers]:
        """All that was measured on validation images: baselines, then validations."""
        return [self.pretrained, self.random, *(each.metrics for each in self.validations)]

    @property
    def at_least(self) -> float:
        """Share of the old domain's mean AP that must be left."""
        return float(self.keep.get('at_least', AT_LEAST))

    def mean_aps(self, domain: str = '') -> list[str]:
        """The mean APs that were given, the main one first; of the second validation set with its ``domain``."""
        given = mean_aps(name for each in self.figures for name in each if name.startswith(OLD) == (domain == OLD))
        return sorted(given, key=lambda name: name.removeprefix(domain) != self.metric)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Any) -> GuardRecord:
        """Out of a checkpoint.

        Raises:
            Damage: It is none.
        """
        return _checked(from_record(cls, record, f'{KEY}.record'), f'{KEY}.record.')

    def ratios(self, losses: Mapping[str, float]) -> Numbers:
        """Term -> how many times that of the loaded weights it is, of ``val/<term>`` -> value, where they have it."""
        return {name.removeprefix('val/'): ratio(losses[name], value) for name, value in self.pretrained.items()
                if name.startswith('val/loss') and name in losses and not is_zero(name, self.pretrained, losses)}

    def write(self, folder: str) -> None:
        """Write ``guard.json``, whole or not at all."""
        plain = self.to_plain()
        plain['baseline'] = {name: plain[name] for name in _BASELINE}
        content = {'version': VERSION, **{name: plain[name] for name in _WRITTEN
                                          if plain[name] or name != 'keep'}}
        text = json.dumps(finite(content), indent=1).encode()
        write_together({Path(folder) / FILE: lambda stream: stream.write(text)})

    @classmethod
    def read(cls, path: Path) -> GuardRecord:
        """Read ``guard.json``; what only a checkpoint keeps has its defaults.

        Raises:
            UserError: The file is damaged or of an unknown version.
        """
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (ValueError, RecursionError, OSError) as error:
            raise UserError(f'cannot read {path}: {error}; {MEND}') from error
        if not isinstance(content, dict):
            raise UserError(f'{path} is damaged: it holds a {type(content).__name__}, not an object; {MEND}')
        if content.get('version') != VERSION:
            raise UserError(f'{path} has version {content.get("version")!r}, known is {VERSION}; read it with the '
                            'release of mgdet that wrote it')
        try:
            baseline: Any = content.get('baseline')
            need(isinstance(baseline, dict), 'baseline', baseline, 'an object')
            given = {name: typed(Numbers, baseline.get(name, {}), f'baseline.{name}') for name in _BASELINE}
            given |= {name: content.get(name) for name in _WRITTEN if name != 'baseline'}
            given = {name: value for name, value in given.items() if value is not None or name not in _OPTIONAL}
            return _checked(from_record(cls, given, ''), '')
        except Damage as error:
            raise UserError(f'{path} is damaged: {error}; {MEND}') from None


def kept_share(record: GuardRecord, metrics: Mapping[str, float]) -> float | None:
    """Which share of the loaded weights' mean AP on the old domain a validation has, above 1 where it has more.

    None where the old domain was not followed, or they had nothing there that could be kept.
    """
    name = next(iter(record.mean_aps(OLD)), '')
    before = record.pretrained.get(name, 0.0)
    if not 0 < before < math.inf or not any(each.startswith(OLD) for each in metrics):
        return None
    now = metrics.get(name, 0.0)  # CocoMetric gives none where nothing is detected
    return now / before if math.isfinite(now) else 0.0


def merit(figure: float, share: float | None = None, at_least: float = AT_LEAST) -> tuple[bool, float, float]:
    """What a checkpoint is the best by; the highest is.

    Those that keep enough of the old domain come before those that do not, whatever they found. Of the first the figure
    decides, of the others what is left.

    Args:
        figure: What the best goes by, the higher the better.
        share: Of the old domain's mean AP that is left; None where that is not asked.
        at_least: How much is enough.
    """
    enough = share is None or keeps(share, at_least)
    return enough, 0.0 if enough or share is None else share, figure


def keeps(share: float, at_least: float) -> bool:
    """Whether a share is enough; evaluators give three digits, and 0.57 of 0.6 is 0.95."""
    return share >= at_least * (1 - _ROUNDING)


def is_zero(name: str, *figures: Mapping[str, float]) -> bool:
    """Whether a figure is 0 wherever it was measured: a loss of nothing, as of classes where there is one."""
    seen = [each[name] for each in figures if name in each]
    return bool(seen) and not any(seen)


_ROUNDING = 1e-9
_BASELINE = ('pretrained', 'random')
_WRITTEN = ('start', 'limit', 'guarded', 'metric', 'best', 'stages', 'baseline', 'validations', 'events', 'bad_steps',
            'ended', 'keep')
_OPTIONAL = ('best', 'ended', 'keep')


def _checked(record: GuardRecord, place: str) -> GuardRecord:
    """A record whose fields are of their types, if their values are among those there are."""
    keep = record.keep
    for name, value, values in (('start', record.start, STARTS), ('ended', record.ended, ENDS),
                                ('keep.by', keep.get('by') or None, JUDGES)):
        need(value is None or value in values, f'{place}{name}', value, f'one of {", ".join(values)}')
    need(0 < keep.get('at_least', AT_LEAST) <= 1, f'{place}keep.at_least', keep.get('at_least'),
         'a share above 0, at most 1')
    need(len(record.best) in (0, 2), f'{place}best', record.best, 'the name of a figure and its rule')
    need(record.good is None or len(record.good) == 2, f'{place}good', record.good, 'an epoch and an iteration')
    return record
