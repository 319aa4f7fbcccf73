"""Where a run is in its plan: the one small record that a checkpoint keeps."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from mgdet_plugin.common.checkpoint_content import checks
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.records import BELOW_ZERO, SHARE, from_record, typed
from mgdet_plugin.plan.plan import Plan, Stage
from mgdet_plugin.plan.until import Waiting

RECORD = 'mgdet'  # in a checkpoint


class Entry(TypedDict, total=False):
    """What is remembered of a stage: its best value, epochs, and the parts of the model it trained."""
    name: str
    freeze_level: int | None
    lr: float
    best: float | None
    best_epoch: int
    epochs: int
    trained_parts: list[str]


@dataclass
class Progress:
    """Stage, since when, and what decides about its end. Epochs and iterations count from 0 over the whole run.

    Attributes:
        stage: Index of the current stage.
        first_epoch: Epoch at which it began.
        first_iter: Iteration at which it began.
        best: Best value of its metric so far; reset at every edge.
        best_epoch: Epochs done when that value was measured.
        misses: Validations since then.
        ended: Whether its metric has ended it.
        validated: Epochs done at the last validation of the run.
        digests: Name -> hash of every tensor when the stage began.
        history: Finished stages, those of the loaded weights first.
        steps: Iterations an epoch of the stage.
        held: Epochs by which the guard has made the stage longer.
        stood: Epochs of the stage in which its schedule has stood still for that.
        damping: Factor by which the guard has lowered all rates.
        fallen: Factor by which the stage's plateau has lowered its rates.
        level: Best value of the plateau's metric so far.
        waited: Validations since then, or since its last fall.
        cooldown: Of a fall, what is left.
        more: Epochs by which a person has made the last stage longer; below 0 where it had ended early.
        run: A name that all checkpoints of one run share, resumed or not.
        start: The plan's start, where the config leaves it to what is loaded: on resume that cannot be told.
        fitted: What of the config was fitted to time or memory before the first step, see
            :mod:`mgdet_plugin.engine.fit.fitting`.
    """
    stage: int = 0
    first_epoch: int = 0
    first_iter: int = 0
    best: float | None = None
    best_epoch: int = 0
    misses: int = 0
    ended: bool = False
    validated: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    history: list[Entry] = field(default_factory=list)
    steps: int = 0
    held: int = 0
    stood: int = 0
    damping: float = field(default=1.0, metadata=SHARE)
    fallen: float = field(default=1.0, metadata=SHARE)
    level: float | None = None
    waited: int = 0
    cooldown: int = 0
    more: int = field(default=0, metadata=BELOW_ZERO)
    run: str = ''
    start: str = ''
    fitted: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, plan: Plan, epoch: int, steps: int) -> Progress:
        """Where a run of ``steps`` iterations an epoch stands that has no record: every stage lasted its longest."""
        index, first = max(each for each in enumerate(plan.first_epochs()) if each[1] <= max(0, epoch - 1))
        return cls(stage=index, first_epoch=first, first_iter=first * steps, validated=epoch)

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Mapping[str, Any], plan: Plan) -> Progress:
        """Out of a checkpoint.

        Raises:
            UserError: If the record is damaged, of another plan or another stage's run.
        """
        progress = from_record(cls, record, RECORD)
        if not 0 <= progress.stage < len(plan.stages):
            raise UserError(f'the checkpoint was made in stage {progress.stage + 1} and the plan has '
                            f'{len(plan.stages)}; resume with the config it was made with')
        made = record.get('entry')
        name = made.get('name') if isinstance(made, Mapping) else None
        stage = plan.stages[progress.stage]
        if name is not None and name != stage.name:
            raise UserError(f"the checkpoint was made in stage '{name}', and stage {progress.stage + 1} of the plan is "
                            f"'{stage.name}': that is another run; start it from the weights (load_from) in a work "
                            'folder of its own, without --resume')
        return progress

    def inherited(self) -> list[Entry]:
        """Stages that the weights went through before this run."""
        return self.history[:len(self.history) - self.stage]

    def batches_done(self, epoch: int, iteration: int, steps: int) -> int:
        """Batches of an epoch that were trained on, at an iteration of the run, ``steps`` an epoch in this stage."""
        return iteration - self.first_iter - (epoch - self.first_epoch) * steps

    def iterations(self, plan: Plan, last: int, end: int, steps: Sequence[int]) -> int:
        """Iterations of the whole run, as far as is known.

        It ends after ``end`` epochs, at most the ``last`` of :meth:`last_epoch`, of ``steps`` iterations in each stage.
        """
        later = plan.stages[self.stage + 1:]
        begin, total = self.first_epoch, self.first_iter
        lengths = [last - sum(stage.epochs for stage in later) - begin, *(stage.epochs for stage in later)]
        for length, each in zip(lengths, steps[self.stage:]):
            total += max(0, min(length, end - begin)) * each
            begin += length
        return total

    def current(self, plan: Plan) -> Stage:
        """The current stage."""
        return plan.stages[self.stage]

    @property
    def rate_factor(self) -> float:
        """Factor on the plan's rates."""
        return self.damping * self.fallen

    def end(self, plan: Plan) -> int:
        """Epochs of the run done when the stage has lasted its longest."""
        return self.first_epoch + self.current(plan).epochs + self.held + self.more

    def is_over(self, plan: Plan, epoch: int) -> bool:
        """Whether the stage is over once ``epoch`` epochs of the run are done."""
        return self.ended or epoch >= self.end(plan)

    def last_epoch(self, plan: Plan, epoch: int) -> int:
        """Epochs of the whole run, as far as is known after ``epoch`` of them."""
        end = self.end(plan)
        return (min(epoch, end) if self.ended else end) + sum(stage.epochs for stage in plan.stages[self.stage + 1:])

    def after_validation(self, plan: Plan, epoch: int, metrics: Mapping[str, float], void: bool = False) -> bool:
        """Take a validation after so many epochs of the run into account.

        With ``void`` its metrics are of weights that are no longer there: no improvement.

        Returns:
            Whether it is the stage's best so far. A metric that could not be measured (mmdet gives none of its figures
            where nothing was detected) is no improvement.

        Raises:
            UserError: If the validation gives other figures of the same kind, but not the one the stage goes by.
        """
        self.validated = epoch
        self._fall(plan, epoch, metrics, void)
        until = plan.until(self.stage)
        if until is None:
            return False
        value = self._figure(plan, until, metrics, void)
        improved = until.improves(value, self.best)
        if improved:
            self.best, self.best_epoch, self.misses = value, epoch, 0
        else:
            self.misses += 1
        self.ended = self.misses >= until.patience and epoch - self.first_epoch >= until.min_epochs
        return improved

    def _figure(self, plan: Plan, waiting: Waiting, metrics: Mapping[str, float], void: bool) -> float:
        """The figure that is waited for, NaN where it could not be measured."""
        kind = waiting.metric.rpartition('/')[0]
        if waiting.metric not in metrics and any(name.rpartition('/')[0] == kind for name in metrics):
            raise UserError(f"stage '{self.current(plan).name}' goes by {waiting.metric}, which the validation does "
                            f'not give; it gives {", ".join(sorted(metrics))}')
        return math.nan if void else float(metrics.get(waiting.metric, math.nan))

    def _fall(self, plan: Plan, epoch: int, metrics: Mapping[str, float], void: bool) -> None:
        """Lower the rates where the stage's plateau says so, counting as Keras does; not before warmup and boost end.

        Keras takes one off the cooldown before it looks whether that is over.
        """
        stage = self.current(plan)
        plateau = stage.plateau
        if plateau is None:
            return
        if self.cooldown:
            self.cooldown, self.waited = self.cooldown - 1, 0
        value = self._figure(plan, plateau, metrics, void)
        if plateau.improves(value, self.level):
            self.level, self.waited = value, 0
        elif not self.cooldown and epoch - self.first_epoch >= stage.warmup + stage.boost_epochs:
            self.waited += 1
            if self.waited >= plateau.patience:
                self.fallen = plateau.fallen(self.fallen, stage.lr)
                self.cooldown, self.waited = plateau.cooldown, 0

    def extend(self, plan: Plan, end: int) -> None:
        """Let the last stage go on until ``end`` epochs of the run are done.

        Where its metric has ended it, the patience begins anew; the best stays.
        """
        if self.ended:
            self.ended, self.misses = False, 0
        self.more += end - self.end(plan)

    def advance(self, epoch: int, iteration: int, entry: Entry) -> None:
        """Enter the next stage at an epoch and iteration; of the last one ``entry`` is remembered, no more."""
        self.history.append(entry)
        self.stage, self.first_epoch, self.first_iter = self.stage + 1, epoch, iteration
        self.best, self.best_epoch, self.misses, self.ended, self.digests = None, 0, 0, False, {}
        self.held = self.stood = self.more = 0
        self.fallen, self.level, self.waited, self.cooldown = 1.0, None, 0, 0


@checks(RECORD)
def check_progress(record: Any, place: str) -> None:
    """Refuse a checkpoint's record of a plan that is none.

    Raises:
        Damage: It is none.
    """
    from_record(Progress, record, place)
    if record.get('entry') is not None:
        typed(Entry, record['entry'], f'{place}.entry')


def stages_before(content: Mapping[str, Any], own: bool = True) -> list[Entry]:
    """The stages a checkpoint's weights went through, the last of them maybe unfinished.

    Args:
        content: Of the checkpoint.
        own: Those of the run that saved it, too; False for what its weights went through before that run.
    """
    record = content.get(RECORD)
    if not isinstance(record, Mapping):
        return []
    history, entry = record.get('history') or [], record.get('entry') or {}
    entries = [*history, entry] if own else history[:len(history) - record.get('stage', 0)]
    return [each for each in entries if {'name', 'trained_parts'} <= set(each)]
