"""What fine-tuning won and what it cost: the metrics of two checkpoints on the test sets of the new and old domain."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config

from mgdet_plugin.runs.held_out import HeldOut

METRICS = {'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50'}


@dataclass(frozen=True)
class Row:
    """What two checkpoints reach on one test set.

    Attributes:
        domain: Name of the set.
        images: Its images.
        before: Name of a metric or loss -> what the first checkpoint reaches; no metric where it detects nothing.
        after: The same of the second.
    """
    domain: str
    images: int
    before: Mapping[str, float]
    after: Mapping[str, float]


def before_after(configs: Mapping[str, str], before: str, after: str,
                 device: str | torch.device | None = None) -> list[Row]:
    """Evaluate two checkpoints of one model on the test sets of several configs.

    Args:
        configs: Name of a domain -> path of a config with its test set; the model is that of the first.
        before: Path of the weights the run started from.
        after: Path of the weights it ended with.
        device: Where to compute. Default: the GPU where there is one.

    Returns:
        One row a domain.

    Raises:
        UserError: A dataset or checkpoint is missing or does not fit.
    """
    tests = HeldOut({name: Config.fromfile(path) for name, path in configs.items()}, device)
    states = [tests.read(path) for path in (before, after)]
    first, last = (tests.measure(state) for state in states)
    return [Row(name, len(loader.dataset), first[name], last[name])  # type: ignore[arg-type]
            for name, (loader, _) in tests.domains.items()]


def rows_text(rows: list[Row]) -> str:
    """The rows as a table for a person; a metric of a model that detects nothing counts as 0."""
    lines = [('test set', 'images', *METRICS.values())]
    for row in rows:
        lines.append((row.domain, str(row.images), *(
            f'{row.before.get(name, 0.0):.3f} -> {row.after.get(name, 0.0):.3f}' for name in METRICS)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def rows_json(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows for machines."""
    return [dict(test_set=row.domain, images=row.images, before=dict(row.before), after=dict(row.after))
            for row in rows]
