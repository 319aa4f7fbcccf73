"""What was seen of a stage's samples, counted."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.prepare.batches.assigned_objects import AssignedObjects
from mgdet_plugin.prepare.batches.stage_batches import StageSample

_LIES_ON = 0.5  # pixels: a box of a target that is farther from its object's is not the same


@dataclass
class Tally:
    """What was seen, in numbers.

    Attributes:
        epoch: The last epoch of which samples were seen, from 0.
        new: New images.
        old: Old images, which the model is held on.
        mixed: Name of a step -> new images it was applied to.
        old_mixed: The same of old images.
        objects: Objects of all.
        cells: Cells that they are assigned to.
        without_cell: Objects that are left no cell.
        error: The farthest that a decoded target lies from its object, in pixels.
        off: Cells whose targets decode to another box or class than their object's.
    """

    epoch: int = 0
    new: int = 0
    old: int = 0
    mixed: Counter[str] = field(default_factory=Counter)
    old_mixed: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    cells: int = 0
    without_cell: int = 0
    error: float = 0.0
    off: int = 0

    def add(self, sample: StageSample, objects: AssignedObjects) -> None:
        """Take a sample into account."""
        self.epoch = max(self.epoch, sample.epoch)
        self.old += sample.old
        self.new += not sample.old
        (self.old_mixed if sample.old else self.mixed).update(sample.augmented or ())
        self.objects += len(objects.boxes)
        self.cells += len(objects.owner)
        if len(objects.owner):
            self.without_cell += int(objects.without_cell.sum())
            self.error = max(self.error, float(objects.errors.max()))
            self.off += int(((objects.errors > _LIES_ON) | objects.wrong).sum())

    def lines(self, planned: Mapping[str, float] | None) -> list[str]:
        """It for a person, beside the planned shares of the mixing steps; None without a plan."""
        shares = ', '.join(f'{self.mixed[name]} {name} ({self.mixed[name] / max(1, self.new):.1%}, planned {share:.0%})'
                           for name, share in (planned or {}).items()) or 'none of a mixing step'
        old = ', '.join(f'{self.old_mixed[name]} {name}' for name in planned or () if self.old_mixed[name])
        parts = [number_of(self.new, 'image') if planned is None else f'{number_of(self.new, "new image")}, {shares}']
        if self.old:
            parts.append(f'{number_of(self.old, "old image")}{" (" if old else ""}{old}{")" if old else ""}')
        cells = f' in {number_of(self.cells, "cell")}' if self.cells else ''
        parts.append(number_of(self.objects, 'object') + cells)
        if self.without_cell:
            parts.append(f'{self.without_cell:,} of them left no cell')
        if self.off:
            parts.append(f'THE TARGETS OF {self.off:,} CELLS DO NOT DECODE TO THE TRUTH: up to {self.error:.2g} pixels '
                         'off, or another class')
        elif self.cells:
            parts.append(f'targets decode to the truth within {self.error:.2g} pixels')
        return parts
