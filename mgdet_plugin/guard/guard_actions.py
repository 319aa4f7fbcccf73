"""What the guard does when a run is in trouble, and what it writes down of it."""
from __future__ import annotations

from collections.abc import Mapping

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mgdet_plugin.common.guard_record import Event, GuardRecord
from mgdet_plugin.engine.hooks.staged_unfreeze_hook import StagedUnfreezeHook
from mgdet_plugin.engine.staged_run import StagedRun
from mgdet_plugin.guard.guard_options import HOLD, LOWER_RATE, ROLLBACK, STOP, GuardOptions
from mgdet_plugin.guard.rollback import GOOD, roll_back

VALIDATION, TRAINING = 'validation', 'training'
_EVENTS_KEPT = 1000


class GuardActions:
    """Takes the actions of a run, the same in every process, and keeps its record of what was seen and done."""

    def __init__(self, runner: Runner, run: StagedRun, record: GuardRecord, options: GuardOptions) -> None:
        self.runner, self.run, self.record, self.options = runner, run, record, options

    def trouble(self, kind: str, where: str, values: Mapping[str, float], text: str) -> list[str]:
        """Take the actions for a kind of trouble and write it down; returns the names of those taken.

        Args:
            kind: One of ``KINDS``.
            where: 'validation' or 'training'.
            values: Name of a figure -> how many times its reference it is.
            text: What is wrong.
        """
        taken, said = self._take(self.options.actions(kind))
        line = self.note(kind, where, values, taken, '; '.join((text, *said)))
        if STOP in taken:
            good = self.record.good
            back = f'those of epoch {good[0]}, {GOOD}' if good else 'those it started from'
            self.run.loop.stop(f'the guard has stopped the run: {line}; the last weights in the band are {back}')
        return taken

    def note(self, kind: str, where: str, values: Mapping[str, float], taken: list[str], text: str) -> str:
        """Log an event, keep it, and return its line; see :meth:`trouble`."""
        training = where == TRAINING
        epoch, iteration = self.runner.epoch + training, self.runner.iter + training
        line = f'{kind} in {where}, epoch {epoch}, iteration {iteration}: {text}'
        self.runner.logger.warning(f'guard: {line}')
        if len(self.record.events) < _EVENTS_KEPT:
            self.record.events.append(Event(epoch=epoch, iter=iteration, stage=self.run.stage.name, kind=kind,
                                            where=where, values=dict(values), actions=taken, text=line))
        self.write()
        return line

    def is_over(self, ratio: float) -> bool:
        """Whether a loss is out of the band."""
        return not ratio <= 1 + self.record.limit  # NaN is over, too

    def write(self) -> None:
        """Write the record to the run's folder."""
        if is_main_process():
            self.record.write(self.runner.work_dir)

    def _take(self, actions: tuple[str, ...]) -> tuple[list[str], list[str]]:
        """Names of the actions taken, and what was done in words."""
        record, options, taken, said = self.record, self.options, [], []
        for action in actions:
            if action == ROLLBACK and record.rollbacks >= options.max_rollbacks:
                action = STOP
                said.append(f'rolled back {record.rollbacks} times already')
            if action == HOLD:
                done = self.run.hold(options.max_hold) if record.held_epoch != self.runner.epoch else None
                record.held_epoch = self.runner.epoch
                said.append(done or 'the stage is not made longer again')
                if done is None:
                    continue
            elif action == LOWER_RATE:
                lowered = self.run.lower_rates(options.rate_factor)
                said.append(f"all rates are {lowered:g} times the plan's from here on")
            elif action == ROLLBACK:
                record.rollbacks += 1
                said.append(f'went back to the weights of {roll_back(self.runner, record.good)}')
                for hook in self.runner.hooks:
                    if isinstance(hook, StagedUnfreezeHook):
                        hook.take_weights_as_start(self.runner)
            elif action == STOP:
                said.append('the run ends')
            taken.append(action)
        return taken, said


def times(values: Mapping[str, float], limit: float | None = None) -> str:
    """Ratios in words, the highest first, with their limit."""
    order = sorted(values, key=lambda name: -values[name])
    text = ', '.join(f'{name} {values[name]:.2f}' for name in order)
    return text if limit is None else f'{text} (limit {1 + limit:.2f})'
