"""Signs of trouble in the losses of a training run: spikes, divergence and drift, out of smoothed values."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed

from mgdet_plugin.common.guard_record import KEY
from mgdet_plugin.common.records import from_record

TOTAL = 'loss'
SPIKE, DIVERGENCE, DRIFT = 'spike', 'divergence', 'drift'


@dataclass(frozen=True)
class Sign:
    """Something a guard should look at.

    Attributes:
        kind: 'spike', 'divergence' or 'drift'.
        values: Name of a loss -> how many times its reference it is.
    """
    kind: str
    values: dict[str, float]


@dataclass
class LossBlock:
    """Iterations of one process since the processes last compared notes."""
    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    peak: float = field(default=-math.inf, metadata=dict(least=-math.inf))

    def add(self, losses: Mapping[str, float]) -> None:
        """Add an iteration's losses."""
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.peak = max(self.peak, losses.get(TOTAL, -math.inf))

    def over_processes(self, device: torch.device) -> tuple[dict[str, float], float]:
        """Means over iterations and processes, and the highest total of any."""
        means = {name: total / self.count for name, total in self.sums.items()}
        if not is_distributed():
            return means, self.peak
        shared = torch.tensor([*means.values()], dtype=torch.float32, device=device)
        peak = torch.tensor(self.peak, dtype=torch.float32, device=device)
        all_reduce(shared, 'mean')
        all_reduce(peak, 'max')
        return dict(zip(means, shared.tolist())), float(peak)


@dataclass
class LossWatch:
    """Smoothed losses of a stage and what they are held against, the same in every process.

    Attributes:
        seen: Iterations since the stage began.
        sums: Name -> exponentially weighted sum.
        weight: Of those sums.
        first_sums: Name -> sum over the stage's first iterations.
        reference: Name -> what the smoothed loss is held against: its mean over those first iterations, in which the
            rate is still low; raised where a measurement did not confirm a drift.
        lowest: Lowest smoothed total of the stage.
    """
    seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    weight: float = field(default=0.0, metadata=dict(least=0, most=2))
    first_sums: dict[str, float] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    lowest: float | None = None

    def smoothed(self) -> dict[str, float]:
        """Name -> exponentially weighted mean."""
        return {name: total / self.weight for name, total in self.sums.items()} if self.weight else {}

    def take(self, means: Mapping[str, float], count: int, window: int) -> None:
        """Take a block of iterations: name -> mean over its ``count`` iterations, to be smoothed over ``window``."""
        keep = (1 - 1 / window)**count
        for name, value in means.items():
            self.sums[name] = keep * self.sums.get(name, 0.0) + (1 - keep) * value
        self.weight = keep * self.weight + 1 - keep
        if not self.reference:
            for name, value in means.items():
                self.first_sums[name] = self.first_sums.get(name, 0.0) + value * count
        self.seen += count
        if not self.reference and self.seen >= window:
            self.reference = {name: total / self.seen for name, total in self.first_sums.items()}
        if self.reference:
            total = self.smoothed().get(TOTAL, math.inf)
            self.lowest = total if self.lowest is None else min(self.lowest, total)

    def spike(self, peak: float, factor: float) -> Sign | None:
        """A sign if a block's highest total is above ``factor`` times the smoothed one; ask before taking the block."""
        usual = self.smoothed().get(TOTAL)
        if not self.reference or not usual or peak <= factor * usual:
            return None
        return Sign(SPIKE, {TOTAL: peak / usual})

    def signs(self, divergence: float, limit: float, guarded: Sequence[str]) -> Iterator[Sign]:
        """What the smoothed losses say.

        Args:
            divergence: How many times its lowest value the smoothed total may be.
            limit: By how much a guarded loss may rise above its reference.
            guarded: Names of the guarded losses.
        """
        now = self.smoothed()
        if self.lowest and now[TOTAL] > divergence * self.lowest:
            yield Sign(DIVERGENCE, {TOTAL: now[TOTAL] / self.lowest})
        ratios = {name: now[name] / self.reference[name] for name in guarded if self.reference.get(name)}
        if any(ratio > 1 + limit for ratio in ratios.values()):
            yield Sign(DRIFT, ratios)

    def accept(self) -> None:
        """Hold losses against what they are now: a sign is given once, and again after a further rise."""
        now = self.smoothed()
        self.reference = {name: max(value, now.get(name, value)) for name, value in self.reference.items()}
        self.lowest = now.get(TOTAL)

    def forget(self) -> None:
        """Smooth anew, held against the same: the weights were put back."""
        self.sums, self.weight = {}, 0.0

    def to_plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, record: Any) -> LossWatch:
        """Out of a checkpoint.

        Raises:
            Damage: It is none.
        """
        return from_record(cls, record, f'{KEY}.watch')
