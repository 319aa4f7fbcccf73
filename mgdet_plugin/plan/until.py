"""What a stage does when a validation's metric no longer improves: it ends, or its rate falls."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require

RULES = ('greater', 'less')


@dataclass(frozen=True)
class Waiting:
    """A metric and how long its improvement is waited for.

    Attributes:
        metric: Name of a validation metric, as logged ('coco/bbox_mAP').
        patience: Validations without improvement that are too many.
        min_delta: An improvement is a change of more than this.
        rule: 'greater' or 'less' is better. Default: by the metric's name.
    """
    metric: str
    patience: int
    min_delta: float = 0.0
    rule: str | None = None

    @classmethod
    def build(cls, where: str, fields: Mapping[str, Any]) -> Self:
        """The condition of a config entry, which stands ``where``.

        Raises:
            UserError: A field is missing, unknown or out of its range.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        require(isinstance(fields, Mapping), f'{where} must be dict(metric=..., patience=...)', fields)
        if {'metric', 'patience'} - set(fields) or set(fields) - known:
            raise UserError(f'{where} needs metric and patience and takes {sorted(known)}, got {dict(fields)}')
        built = cls(**fields)
        require(isinstance(built.metric, str), f'{where}.metric must be the name of a figure', built.metric)
        require(built.rule in (None, *RULES), f'{where}.rule must be one of {RULES}', built.rule)
        built.check(where)
        return built

    def check(self, where: str) -> None:
        """Refuse numbers out of their range.

        Raises:
            UserError: With the field and the value.
        """
        require(is_whole(self.patience, 1), f'{where}.patience must be a whole number of at least 1', self.patience)
        require(is_number(self.min_delta) and 0 <= self.min_delta < math.inf,
                f'{where}.min_delta must be a number of at least 0', self.min_delta)

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best one so far; nothing improves on a number with NaN."""
        rule = self.rule or ('less' if 'loss' in self.metric.lower() else 'greater')
        sign = 1 if rule == 'greater' else -1
        return not math.isnan(value) and (best is None or sign * (value - best) > self.min_delta)


@dataclass(frozen=True)
class Until(Waiting):
    """When a stage ends before its last epoch: after ``patience`` validations without improvement.

    Attributes:
        min_epochs: The stage lasts at least this long.
    """
    min_epochs: int = 1

    def check(self, where: str) -> None:
        """See :meth:`Waiting.check`."""
        super().check(where)
        require(is_whole(self.min_epochs, 1), f'{where}.min_epochs must be a whole number of at least 1',
                self.min_epochs)


@dataclass(frozen=True)
class Plateau(Waiting):
    """When the rate of a stage falls, as by Keras' ``ReduceLROnPlateau``, whose defaults these are.

    Attributes:
        factor: On the rate, each time ``patience`` validations have not improved.
        min_lr: The rate it does not fall below, of groups whose multiplier is 1; others keep their ratio to it.
        cooldown: Validations from a fall to the first whose miss counts, that one included.
    """
    metric: str = 'val/loss'
    patience: int = 10
    min_delta: float = 1e-4
    factor: float = 0.1
    min_lr: float = 0.0
    cooldown: int = 0

    @classmethod
    def build(cls, where: str, fields: Mapping[str, Any]) -> Self:
        """See :meth:`Waiting.build`; every field has a default."""
        given = {'metric': cls.metric, 'patience': cls.patience, **fields} if isinstance(fields, Mapping) else fields
        return super().build(where, given)

    def check(self, where: str) -> None:
        """See :meth:`Waiting.check`."""
        super().check(where)
        require(is_number(self.factor) and 0 < self.factor < 1, f'{where}.factor must be above 0 and below 1',
                self.factor)
        require(is_number(self.min_lr) and 0 <= self.min_lr < math.inf, f'{where}.min_lr must be a number of at least '
                '0', self.min_lr)
        require(is_whole(self.cooldown, 0), f'{where}.cooldown must be a whole number of at least 0', self.cooldown)

    def fallen(self, factor: float, lr: float) -> float:
        """The factor on a stage's rate ``lr`` after one more fall; never higher than before."""
        return min(factor, max(factor * self.factor, min(1.0, self.min_lr / lr)))
