"""What of a run is settled before its data is seen: by another project's settings, in place of what would be chosen."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mgdet_plugin.prepare.choices import Choice, Choices, Network


@dataclass(frozen=True)
class Recipe:
    """Settled values; what is None or empty is chosen or left to the base.

    Attributes:
        network: Of ours, where there are no weights to tell it.
        size: Sides of the square input in pixels.
        batch: Images a step.
        interval: Epochs from one validation to the next.
        epochs: Of a run without stages.
        stages: Fields of each stage, and why it is so.
        model: What the config's ``model`` states beside its classes, nested as there.
        steps: Of the training pipeline, before boxes are filtered.
        metric: What the config's ``CocoMetric`` states beside its file.
        test_batch: Images a step where it is measured.
        images: How many of the test set are measured.
        more: Further keys of the config.
        measures: Whether there is a test set and nothing to train on.
    """

    network: Network | None = None
    size: Choice | None = None
    batch: Choice | None = None
    interval: Choice | None = None
    epochs: Choice | None = None
    stages: tuple[tuple[Mapping[str, Any], str], ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()
    metric: Mapping[str, Any] = field(default_factory=dict)
    test_batch: int | None = None
    images: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    measures: bool = False

    def settle(self, choices: Choices) -> Choices:
        """The choices with what is settled in place of what was chosen."""
        epochs = (self.epochs, ) if self.epochs else choices.epochs
        return replace(choices, size=self.size or choices.size, batch=self.batch or choices.batch, epochs=epochs,
                       interval=self.interval or choices.interval)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both have a value the second's counts."""
    both = {key: merged(first[key], second[key]) for key in first.keys() & second.keys()
            if isinstance(first[key], Mapping) and isinstance(second[key], Mapping)}
    return {**first, **second, **both}
