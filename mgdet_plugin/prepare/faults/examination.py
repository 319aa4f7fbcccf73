"""Everything that is known of a data set: its pictures, how they fit the network's input, and what was found."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.prepare.faults.box_faults import class_counts
from mgdet_plugin.prepare.faults.findings import Finding, as_json, exit_code, verdict_line
from mgdet_plugin.prepare.faults.input_fit import Fit, NetworkInput, PlacedBoxes
from mgdet_plugin.prepare.faults.picture_records import PictureSet


@dataclass(frozen=True)
class Examination:
    """A data set that was examined.

    Attributes:
        source: The config, file or folder.
        data: Its pictures.
        findings: What was found, the worst first.
        into: The network's input; None where the head has no anchors of ours.
        boxes: The training boxes in it.
        fit: How they fit.
        looked: How many pictures were decoded.
    """

    source: str
    data: PictureSet
    findings: tuple[Finding, ...]
    into: NetworkInput | None = None
    boxes: PlacedBoxes | None = None
    fit: Fit | None = None
    looked: int = 0

    def summary(self) -> Iterator[str]:
        """What was examined, a line each."""
        splits = ', '.join(f'{split}: {number_of(len(records), "picture")} with '
                           f'{number_of(sum(len(each.sound) for each in records), "box")}'
                           for split, records in ((name, self.data.of(name)) for name in self.data.splits))
        form = f'{self.data.form}; ' if self.data.form else ''
        yield f'{self.source}: {form}{splits}; {number_of(len(self.data.classes), "class")}'
        total = len({each.path for each in self.data.records})
        if self.looked < total:
            yield f'{self.looked:,} of {number_of(total, "picture")} looked at'
        if self.into and self.fit is not None and len(self.fit.best):
            per_level = len(self.into.anchors[0])
            shares = [float((self.fit.anchor // per_level == level).float().mean())
                      for level in range(len(self.into.strides))]
            levels = ', '.join(f'{share:.0%} to stride {stride}' for share, stride in zip(shares, self.into.strides))
            yield (f'in the input of {self.into.size[0]} x {self.into.size[1]} the best anchor covers a training box '
                   f'by {float(self.fit.best.mean()):.3f} on average (IoL); {levels}')

    def lines(self) -> list[str]:
        """All that a person should read."""
        return [*self.summary(), *(line for each in self.findings for line in each.lines()),
                verdict_line(self.findings)]

    def as_json(self) -> dict[str, Any]:
        """The examination as plain data."""
        splits = {split: dict(pictures=len(self.data.of(split)), boxes=dict(class_counts(self.data, split)))
                  for split in self.data.splits}
        return dict(source=self.source, exit_code=exit_code(self.findings), classes=list(self.data.classes),
                    splits=splits, summary=list(self.summary()), findings=[as_json(each) for each in self.findings])
