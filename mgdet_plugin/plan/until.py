"""When a stage ends by a metric."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgdet_plugin.common.errors import UserError, require

RULES = ('greater', 'less')


@dataclass(frozen=True)
class Until:
    """When a stage ends before its last epoch.

    Attributes:
        metric: Name of a validation metric, as logged ('coco/bbox_mAP').
        patience: Validations without improvement after which the stage ends.
        min_epochs: The stage lasts at least this long.
        min_delta: An improvement is a change of more than this.
        rule: 'greater' or 'less' is better. Default: by the metric's name.
    """
    metric: str
    patience: int
    min_epochs: int = 1
    min_delta: float = 0.0
    rule: str | None = None

    @classmethod
    def build(cls, where: str, fields: Mapping[str, Any]) -> Until:
        """The condition of a config entry, which stands ``where``.

        Raises:
            UserError: A field is missing, unknown or out of its range.
        """
        known = {each.name for each in dataclasses.fields(cls)}
        require(isinstance(fields, Mapping), f'{where} must be dict(metric=..., patience=...)', fields)
        if {'metric', 'patience'} - set(fields) or set(fields) - known:
            raise UserError(f'{where} needs metric and patience and takes {sorted(known)}, got {dict(fields)}')
        until = cls(**fields)
        require(until.rule in (None, *RULES), f'{where}.rule must be one of {RULES}', until.rule)
        if not isinstance(until.patience, int) or until.patience < 1 or until.min_epochs < 1 or until.min_delta < 0:
            raise UserError(f'{where}.patience and min_epochs must be at least 1 and min_delta at least 0, got '
                            f'{until.patience}, {until.min_epochs} and {until.min_delta}')
        return until

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best one so far; nothing improves on a number with NaN."""
        rule = self.rule or ('less' if 'loss' in self.metric.lower() else 'greater')
        sign = 1 if rule == 'greater' else -1
        return not math.isnan(value) and (best is None or sign * (value - best) > self.min_delta)
