"""What the guard does when a run is in trouble."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmengine.runner import Runner

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.guard_record import GuardRecord
from mgdet_plugin.engine.hooks.staged_unfreeze_hook import StagedUnfreezeHook
from mgdet_plugin.guard.rollback import roll_back

WARN, HOLD, LOWER_RATE, ROLLBACK, STOP = ACTIONS = ('warn', 'hold', 'lower_rate', 'rollback', 'stop')
VALIDATION, TRAINING = 'validation', 'training'


@dataclass(frozen=True)
class ActionLimits:
    """How far actions go.

    Attributes:
        rate_factor: Factor on all rates each time they are lowered.
        max_hold: Epochs by which a stage is made longer at most. Default: its own length.
        max_rollbacks: Rollbacks of a run; the next one stops it.
    """
    rate_factor: float = 0.5
    max_hold: int | None = None
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.rate_factor, (int, float)) or not 0 < self.rate_factor < 1:
            raise UserError(f'DriftGuardHook: rate_factor must be above 0 and below 1, got {self.rate_factor!r}')
        for name, value in (('max_hold', 0 if self.max_hold is None else self.max_hold),
                            ('max_rollbacks', self.max_rollbacks)):
            if not isinstance(value, int) or value < 0:
                raise UserError(f'DriftGuardHook: {name} must be a whole number of at least 0, got {value!r}')


def check_actions(kind: str, actions: str | Sequence[str]) -> tuple[str, ...]:
    """Actions of a config entry, in the order they are taken.

    Raises:
        UserError: One is unknown, or there is none.
    """
    given = tuple(actions) if isinstance(actions, (list, tuple)) else (actions, )
    if not given or any(each not in ACTIONS for each in given):
        raise UserError(f'DriftGuardHook: {kind} must be one or several of {ACTIONS}, got {actions!r}')
    return tuple(each for each in ACTIONS if each in given)


def act(runner: Runner, hook: StagedUnfreezeHook, record: GuardRecord, limits: ActionLimits,
        actions: Iterable[str]) -> tuple[list[str], list[str]]:
    """Take actions, the same in every process.

    Args:
        runner: The runner.
        hook: What carries out its plan.
        record: The guard's record; rollbacks are counted there.
        limits: How far actions go.
        actions: Names of the actions.

    Returns:
        Names of the actions taken, and what was done in words.
    """
    taken, said = [], []
    for action in actions:
        if action == ROLLBACK and record.rollbacks >= limits.max_rollbacks:
            action = STOP
            said.append(f'rolled back {record.rollbacks} times already')
        if action == HOLD:
            done = hook.run.hold(limits.max_hold) if record.held_epoch != runner.epoch else None
            record.held_epoch = runner.epoch
            said.append(done or 'the stage is not made longer again')
            if done is None:
                continue
        elif action == LOWER_RATE:
            said.append(f"all rates are {hook.run.lower_rates(limits.rate_factor):g} times the plan's from here on")
        elif action == ROLLBACK:
            record.rollbacks += 1
            said.append(f'went back to the weights of {roll_back(runner, record.good)}')
            hook.take_weights_as_start(runner)
        elif action == STOP:
            said.append('the run ends')
        taken.append(action)
    return taken, said


def times(values: Mapping[str, float], limit: float | None = None) -> str:
    """Ratios in words, those above a limit first."""
    order = sorted(values, key=lambda name: -values[name])
    text = ', '.join(f'{name} {values[name]:.2f}' for name in order)
    return text if limit is None else f'{text} (limit {1 + limit:.2f})'
