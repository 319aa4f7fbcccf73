"""What the guard knows of a run: kept in every checkpoint, and as ``guard.json`` in the run's folder."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.records import finite, known_fields, ratio

KEY = 'guard'  # in a checkpoint
FILE = 'guard.json'
VERSION = 1


@dataclass
class GuardRecord:
    """Baselines, validations and events of a run.

    Attributes:
        start: The plan's start: 'full', 'backbone' or 'nothing'.
        limit: By how much a guarded loss may exceed that of the loaded weights.
        guarded: Names of the guarded losses.
        metric: The main metric.
        data: A hash of the validation set and what a loss on it means.
        pretrained: Name -> value of the loaded weights on the validation set(s), or of those they were trained from.
        random: The same of a random start.
        subset: Losses of the loaded weights on the subset that is measured in training.
        subset_images: Its size.
        best: Name and rule ('greater' or 'less') by which the best checkpoint is kept; empty if none is.
        stages: Stages entered, each with its first epoch and iteration.
        validations: One entry a validation.
        events: What the guard saw and did.
        bad_steps: Steps skipped because a number was not finite.
        bad_in_row: The last so many of the steps done were.
        poisoned: Whether accumulated gradients wait that will make no step.
        rollbacks: How often weights were put back.
        good: Epoch and iteration of ``last_good.pth``; None while that is the start.
        held_epoch: Epoch after which the stage was made longer last.
        compared: Whether the first training losses were held against the validation's.
        ended: 'plan', 'early_stopping' or 'guard' at the end.
    """
    start: str = 'full'
    limit: float = 0.2
    guarded: list[str] = field(default_factory=list)
    metric: str = ''
    data: str = ''
    pretrained: dict[str, float] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)
    subset: dict[str, float] = field(default_factory=dict)
    subset_images: int = 0
    best: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    bad_steps: int = 0
    bad_in_row: int = 0
    poisoned: bool = False
    rollbacks: int = 0
    good: list[int] | None = None
    held_epoch: int = -1
    compared: bool = False
    ended: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Mapping[str, Any]) -> GuardRecord:
        """Out of a checkpoint."""
        return cls(**known_fields(cls, record))

    def ratios(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Term -> how many times that of the loaded weights it is, where they have it.

        Args:
            losses: ``val/<term>`` -> value.
        """
        return {name.removeprefix('val/'): ratio(losses[name], value) for name, value in self.pretrained.items()
                if name.startswith('val/loss') and name in losses}

    def write(self, folder: str) -> None:
        """Write ``guard.json``, whole or not at all."""
        content = dict(
            version=VERSION, start=self.start, limit=self.limit, guarded=self.guarded, metric=self.metric,
            best=self.best, stages=self.stages, baseline=dict(pretrained=self.pretrained, random=self.random),
            validations=self.validations, events=self.events, bad_steps=self.bad_steps, ended=self.ended)
        text = json.dumps(finite(content), indent=1).encode()
        write_together({Path(folder) / FILE: lambda stream: stream.write(text)})


def append_line(folder: str, name: str, entry: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file of the run's folder."""
    with open(os.path.join(folder, name), 'a', encoding='utf-8') as stream:
        stream.write(json.dumps(finite(entry)) + '\n')
