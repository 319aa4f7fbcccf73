"""What to look at: a stage and an epoch of a plan, how many samples, and whose detections beside them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require
from mgdet_plugin.plan.plan import Plan

DRAWN = 24  # samples of a sheet
_MOST = 1_000_000


@dataclass(frozen=True)
class View:
    """What to look at.

    Attributes:
        stage: Number of the stage, from 1, or its name. Default: that of the epoch, else the first.
        epoch: Epoch of the run as its log counts, from 1. Default: the stage's first.
        seed: Seed of the run. Default: the config's, else that stored in the checkpoint, else 0.
        samples: How many are looked at, in later epochs of the stage, too, where one has not so many; at most
            :data:`DRAWN` of them are drawn.
        checkpoint: Weights whose detections are drawn beside each sample. Default: none.
        score_thr: Lowest score of a detection that is drawn.

    Raises:
        UserError: A number is out of its range.
    """

    stage: str | None = None
    epoch: int | None = None
    seed: int | None = None
    samples: int = 12
    checkpoint: str | None = None
    score_thr: float = 0.3

    def __post_init__(self) -> None:
        require(is_whole(self.samples, 1) and self.samples <= _MOST, f'from 1 to {_MOST:,} samples can be looked at',
                self.samples)
        require(is_number(self.score_thr) and 0 <= self.score_thr <= 1, 'the lowest score must be from 0 to 1',
                self.score_thr)
        require(self.seed is None or is_whole(self.seed, 0), 'the seed must be a whole number from 0', self.seed)
        require(self.epoch is None or is_whole(self.epoch, 1), 'an epoch must be a whole number from 1, as the log '
                'counts', self.epoch)


class Place(NamedTuple):
    """Stage and epoch of a run, from 0, and the stage in words."""

    stage: int
    epoch: int
    words: str


def place_of(plan: Plan, view: View) -> Place:
    """Where in a plan to look.

    Raises:
        UserError: It has no such stage or epoch.
    """
    names, first = [stage.name for stage in plan.stages], plan.first_epochs()
    if view.stage is None:
        if view.epoch is not None and view.epoch > plan.epochs:
            raise UserError(f'the plan has {plan.epochs} epochs, got {view.epoch}; where a run was held longer give '
                            '--stage, too')
        index = 0 if view.epoch is None else max(each for each, begin in enumerate(first) if begin < view.epoch)
    elif view.stage in names:
        index = names.index(view.stage)
    else:
        require(view.stage.isdecimal() and 1 <= int(view.stage) <= len(names),
                f'the stage must be a number from 1 to {len(names)} or one of {", ".join(names)}', view.stage)
        index = int(view.stage) - 1
    epoch = first[index] if view.epoch is None else view.epoch - 1
    last = first[index] + plan.stages[index].epochs
    return Place(index, epoch, f"stage {index + 1} '{names[index]}' of {len(names)} (epochs {first[index] + 1} to "
                 f'{last})')


def place_without_stages(train_cfg: Mapping[str, Any], view: View) -> Place:
    """Where in a run without stages to look.

    Raises:
        UserError: It has no such epoch, or a stage is asked for.
    """
    if view.stage is not None:
        raise UserError(f'the config has no stages, got --stage {view.stage}; leave it out')
    last, iterations = train_cfg.get('max_epochs'), train_cfg.get('max_iters')
    epoch = view.epoch or 1
    if isinstance(last, int) and epoch > last:
        raise UserError(f'the run has {last} epochs, got {epoch}')
    length = f'{last} epochs' if last else f'{iterations:,} iterations' if iterations else 'length not said'
    return Place(0, epoch - 1, f'no stages ({length})')
