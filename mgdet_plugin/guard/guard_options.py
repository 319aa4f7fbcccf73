"""What the guard is told: limits, and what to do in each kind of trouble."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.guard.guard_actions import ActionLimits, check_actions
from mgdet_plugin.guard.loss_watch import DIVERGENCE, DRIFT, SPIKE

NAN, MISMATCH = 'nan', 'mismatch'
KINDS = (DRIFT, SPIKE, DIVERGENCE, NAN, MISMATCH)
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
    """
    limit: float = 0.2
    terms: str | Sequence[str] | None = None
    images: int = 64
    window: int = 50
    interval: int = 10
    drift: Actions = 'warn'
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
    def build(cls, given: dict[str, Any]) -> GuardOptions:
        """Options of a config entry.

        Raises:
            UserError: One is unknown or out of its range.
        """
        known = [each.name for each in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(f'DriftGuardHook has no option {unknown}; it takes {", ".join(known)}')
        options = cls(**given)
        for name, least in (('limit', 0), ('spike_factor', 1), ('divergence_factor', 1), ('mismatch_factor', 1)):
            value = getattr(options, name)
            if not isinstance(value, (int, float)) or not value > least:
                raise UserError(f'DriftGuardHook: {name} must be above {least}, got {value!r}')
        for name in ('images', 'window', 'interval', 'nan_patience'):
            value = getattr(options, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f'DriftGuardHook: {name} must be a whole number of at least 1, got {value!r}')
        assert options.action_limits and all(options.actions(kind) for kind in KINDS)  # refuse what is wrong
        return options

    def actions(self, kind: str) -> tuple[str, ...]:
        """Actions in a kind of trouble, in the order they are taken."""
        return check_actions(kind, getattr(self, kind))

    @property
    def action_limits(self) -> ActionLimits:
        """How far actions go."""
        return ActionLimits(self.rate_factor, self.max_hold, self.max_rollbacks)
