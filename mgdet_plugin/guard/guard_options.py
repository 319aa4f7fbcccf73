"""What the guard is told: limits, and what to do in each kind of trouble."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mgdet_plugin.common.errors import is_number, is_whole, require, require_known
from mgdet_plugin.guard.loss_watch import DIVERGENCE, DRIFT, SPIKE

WARN, HOLD, LOWER_RATE, ROLLBACK, STOP = ACTIONS = ('warn', 'hold', 'lower_rate', 'rollback', 'stop')
NAN, MISMATCH, FORGETTING = 'nan', 'mismatch', 'forgetting'
KINDS = (DRIFT, FORGETTING, SPIKE, DIVERGENCE, NAN, MISMATCH)
Actions = str | Sequence[str]


@dataclass(frozen=True)
class GuardOptions:
    """Options of :class:`DriftGuardHook`.

    Attributes:
        limit: By how much a guarded loss may exceed that of the loaded weights.
        terms: The guarded losses. Default: those of objectness and class.
        images: Size of the subset.
        window: Iterations over which training losses are smoothed.
        interval: Iterations between looks at them.
        drift: Actions when a guarded loss is above its limit.
        forgetting: Actions when less of the old domain's mean AP is left than the config's ``keep.at_least``.
        spike: Actions when one iteration's loss is above ``spike_factor`` times the smoothed one.
        divergence: Actions when the smoothed loss is above ``divergence_factor`` times its lowest of the stage.
        nan: Actions when ``nan_patience`` steps in a row were skipped, or a validation loss is not finite.
        mismatch: Actions when the first training losses are above ``mismatch_factor`` times those of validation images.
        spike_factor: See ``spike``.
        divergence_factor: See ``divergence``.
        nan_patience: See ``nan``.
        mismatch_factor: See ``mismatch``.
        random_start: Whether a random start is measured.
        rate_factor: Factor on all rates each time they are lowered.
        max_hold: Epochs by which a stage is made longer at most. Default: its own length.
        max_rollbacks: Rollbacks of a run; the next one stops it.

    Raises:
        UserError: One is out of its range.
    """
    limit: float = 0.2
    terms: str | Sequence[str] | None = None
    images: int = 64
    window: int = 50
    interval: int = 10
    drift: Actions = 'warn'
    forgetting: Actions = 'warn'
    spike: Actions = 'warn'
    divergence: Actions = ('lower_rate', 'rollback')
    nan: Actions = ('lower_rate', 'rollback')
    mismatch: Actions = 'warn'
    spike_factor: float = 5.0
    divergence_factor: float = 2.0
    nan_patience: int = 3
    mismatch_factor: float = 3.0
    random_start: bool = True
    rate_factor: float = 0.5
    max_hold: int | None = None
    max_rollbacks: int = 3

    @classmethod
    def build(cls, given: Mapping[str, Any]) -> GuardOptions:
        """Options of a config entry.

        Raises:
            UserError: One is unknown or out of its range.
        """
        require_known(cls, given, 'DriftGuardHook')
        return cls(**given)

    def __post_init__(self) -> None:
        for name, bound in dict(limit=0, spike_factor=1, divergence_factor=1, mismatch_factor=1).items():
            value = getattr(self, name)
            require(is_number(value) and value > bound, f'DriftGuardHook: {name} must be above {bound}', value)
        require(is_number(self.rate_factor) and 0 < self.rate_factor < 1,
                'DriftGuardHook: rate_factor must be above 0 and below 1', self.rate_factor)
        for name, least in dict(images=1, window=1, interval=1, nan_patience=1, max_hold=0, max_rollbacks=0).items():
            value = getattr(self, name)
            require(is_whole(value, least) or (name == 'max_hold' and value is None),
                    f'DriftGuardHook: {name} must be a whole number of at least {least}', value)
        for kind in KINDS:
            self.actions(kind)

    def actions(self, kind: str) -> tuple[str, ...]:
        """Actions in a kind of trouble, in the order they are taken.

        Raises:
            UserError: One is unknown, or there is none.
        """
        given = getattr(self, kind)
        names = tuple(given) if isinstance(given, (list, tuple)) else (given, )
        require(names and all(each in ACTIONS for each in names),
                f'DriftGuardHook: {kind} must be one or several of {ACTIONS}', given)
        return tuple(each for each in ACTIONS if each in names)
