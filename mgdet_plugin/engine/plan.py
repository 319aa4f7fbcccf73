"""The plan of a fine-tuning run: a list of stages, plain data.

What is frozen at an epoch is a pure function of (plan, epoch), so a resumed run needs no stored state.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mgdet_plugin.engine.freezing import FREEZE_LEVELS
from mgdet_plugin.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: What the log calls it.
        epochs: Its length.
        freeze_level: 2 trains only the predict convolutions, 1 freezes the backbone, 0 trains everything.
        lr: Learning rate the stage is meant for.
        mosaic_prob: Share of samples that are mosaics.
        mixup_prob: Share of samples that are mixed up.
    """
    name: str
    epochs: int
    freeze_level: int
    lr: float
    mosaic_prob: float = 0.0
    mixup_prob: float = 0.0

    @classmethod
    def build(cls, fields: Mapping) -> Stage:
        """Stage of a config entry.

        Raises:
            UserError: If a field is missing, unknown or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        missing = {'name', 'epochs', 'freeze_level', 'lr'} - set(fields)
        if missing or set(fields) - known:
            raise UserError(f'a stage takes {sorted(known)}; got {dict(fields)}')
        stage = cls(**fields)
        if stage.freeze_level not in FREEZE_LEVELS:
            raise UserError(f"stage '{stage.name}': freeze_level must be one of {tuple(FREEZE_LEVELS)}, got "
                            f'{stage.freeze_level}')
        if not isinstance(stage.epochs, int) or stage.epochs < 1 or not stage.lr > 0:
            raise UserError(f"stage '{stage.name}': epochs must be a whole number of at least 1 and lr positive, got "
                            f'{stage.epochs} and {stage.lr}')
        if stage.mosaic_prob or stage.mixup_prob:
            raise UserError(f"stage '{stage.name}': this version has no mosaic or mixup; set mosaic_prob and "
                            f'mixup_prob to 0, got {stage.mosaic_prob} and {stage.mixup_prob}')
        return stage


def build_plan(stages: Sequence[Mapping]) -> tuple[Stage, ...]:
    """Stages of a config, checked.

    Raises:
        UserError: If there is none or one is wrong.
    """
    if not stages:
        raise UserError('stages must hold at least one stage, got none')
    return tuple(Stage.build(fields) for fields in stages)


def stage_at(plan: Sequence[Stage], epoch: int) -> tuple[int, Stage]:
    """Index and stage of an epoch (from 0); epochs past the plan's end belong to the last stage."""
    end = 0
    for index, stage in enumerate(plan):
        end += stage.epochs
        if epoch < end:
            return index, stage
    return len(plan) - 1, plan[-1]
