"""New classes for an imported model: who they are, and their rows in the prediction convolutions.

Shapes: D = 5 + A + C channels of a prediction map, K channels of its bridge.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mgdet_plugin.errors import UserError

MAX_CLASSES = 10_000
MAX_NAMES_BYTES = 2 ** 20
ROW_STD = 0.01
SEED = 0


@dataclass(frozen=True)
class TargetClasses:
    """The classes to import for.

    Attributes:
        count: C.
        names: Their names, None where only their number was given.
    """

    count: int
    names: tuple[str, ...] | None = None


def parse_classes(given: str | int | Path) -> TargetClasses:
    """Read what ``--classes`` takes.

    Args:
        given: A number of classes, or the path of a text file with one name a line; empty lines are skipped.

    Raises:
        UserError: The number is out of range; the file is missing, no text, empty or names a class twice.
    """
    try:
        count = int(str(given))
    except ValueError:
        return read_names(Path(str(given)))
    if not 1 <= count <= MAX_CLASSES:
        raise UserError(f'--classes {count}: the number of classes must be from 1 to {MAX_CLASSES:,}')
    return TargetClasses(count)


def read_names(path: Path) -> TargetClasses:
    """Read a file of class names, one a line."""
    if not path.is_file():
        raise UserError(f'--classes {path}: neither a number of classes nor a file of names; write one name a line')
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise UserError(f'--classes {path}: larger than {MAX_NAMES_BYTES:,} bytes, no list of class names')
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--classes {path}: cannot be read as text: {error}') from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f'--classes {path}: the file has no class names; write one name a line')
    if len(names) > MAX_CLASSES:
        raise UserError(f'--classes {path}: {len(names):,} names, at most {MAX_CLASSES:,} are taken')
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f'--classes {path}: the file names a class twice: {", ".join(twice[:5])}')
    return TargetClasses(len(names), names)


def replace_class_rows(weight: Tensor, bias: Tensor, kept: int, sources: Sequence[int | None],
                       generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give a prediction convolution rows for other classes.

    Args:
        weight: (D, K, 1, 1), rows of boxes, objectness and anchors first.
        bias: (D,).
        kept: How many first rows stay as they are, 5 + A.
        sources: For each new class, the old class whose row it takes, None for a row drawn from N(0, 0.01) with
            zero bias.
        generator: Where new rows are drawn from.

    Returns:
        weight (kept + len(sources), K, 1, 1) and bias (kept + len(sources),).
    """
    rows = torch.randn(len(sources), *weight.shape[1:], generator=generator) * ROW_STD
    shifts = torch.zeros(len(sources))
    known = [(new, old) for new, old in enumerate(sources) if old is not None]
    if known:
        new, old = (torch.tensor(indices) for indices in zip(*known, strict=True))
        rows[new], shifts[new] = weight[kept + old], bias[kept + old]
    return torch.cat((weight[:kept], rows)), torch.cat((bias[:kept], shifts))
