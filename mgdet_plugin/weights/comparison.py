"""Compare the tensors of a checkpoint with those they were made of, bit for bit."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.checkpoint import Checkpoint, weight_keys
from mgdet_plugin.weights.mapping.classes import MAX_CLASSES
from mgdet_plugin.weights.mapping.fit import BOX_ROWS


@dataclass(frozen=True)
class Rows:
    """Where the channels of a prediction map of the checkpoint came from.

    Attributes:
        in_file: Channels in the file.
        origins: For every channel of the checkpoint, the channel of the file, None where it was drawn anew.
    """

    in_file: int
    origins: tuple[int | None, ...]

    @property
    def kept(self) -> list[int]:
        """Channels of the checkpoint that came from the file."""
        return [row for row, origin in enumerate(self.origins) if origin is not None]

    @property
    def taken(self) -> list[int]:
        """The channels of the file they came from."""
        return [origin for origin in self.origins if origin is not None]


@dataclass(frozen=True)
class Comparison:
    """What became of one tensor.

    Attributes:
        key: Its key in the checkpoint.
        place: Where its array lies in the file.
        difference: None where all numbers compared are bit-equal; else what differs.
        largest: Largest difference, NaN where shapes or NaN make it meaningless.
        new_rows: Rows drawn anew, which are only counted.
    """

    key: str
    place: str
    difference: str | None
    largest: float
    new_rows: int


def row_origins(checkpoint: Checkpoint) -> dict[str, Rows]:
    """Where the rows of every prediction convolution came from, by the checkpoint's own account.

    Args:
        checkpoint: Its ``meta.keras_import.classes.rows`` says which class rows were kept; without it all must be.

    Returns:
        Prefix of the prediction convolution -> rows; only of those whose rows are not all in their own places.

    Raises:
        UserError: The account is no account of these files.
    """
    imported = checkpoint.meta.get('keras_import')
    classes = imported.get('classes') if isinstance(imported, dict) else None
    if not isinstance(classes, dict) or checkpoint.part == 'backbone':
        return {}
    in_file, picked = picked_rows(classes)
    if not picked or not all(row is None or (type(row) is int and 0 <= row < in_file) for row in picked):
        raise UserError(f'{checkpoint.name}: its meta does not say which class rows were kept; import the file again')
    if picked == list(range(in_file)):
        return {}
    origins: dict[str, Rows] = {}
    for scale, outputs in enumerate(checkpoint.outputs):
        kept = outputs - len(picked)  # box, objectness and anchors
        if kept <= BOX_ROWS:
            raise UserError(f'{checkpoint.name}: its meta counts {len(picked)} classes, which do not fit predictions '
                            f'of {outputs} channels; import the file again')
        origins[f'bbox_head.predict_convs.{scale}'] = Rows(
            kept + in_file, (*range(kept), *(None if row is None else kept + row for row in picked)))
    return origins


def picked_rows(classes: Mapping[str, Any]) -> tuple[int, list[Any]]:
    """Classes in the file, and the class of the file each class of the checkpoint took its row from, unchecked.

    Imports before rows were recorded kept all class rows or, with ``--classes``, none.
    """
    in_file, written, entries = classes.get('file'), classes.get('written'), classes.get('rows')
    if type(in_file) is not int:
        return 0, []
    if isinstance(entries, list):
        return in_file, [entry.get('source_row', -1) if isinstance(entry, dict) else -1 for entry in entries]
    if 'new' in classes and type(written) is int and 0 < written <= MAX_CLASSES:
        return in_file, [None] * written if classes['new'] else list(range(in_file))
    return in_file, []


def compare(places: Mapping[str, str], read: Callable[[str], np.ndarray], checkpoint: Checkpoint,
            rows: Mapping[str, Rows], count: Callable[[int], object]) -> list[Comparison]:
    """Compare every tensor Keras knows.

    Args:
        places: Key -> where its array lies, for the account.
        read: Key -> expected float32 array in torch's layout.
        checkpoint: What is verified.
        rows: Where rows of prediction convolutions came from.
        count: Called with the bytes of every tensor compared.
    """
    compared = []
    for key in weight_keys(checkpoint.part):
        expected, found = read(key), checkpoint.state[key].detach().float().numpy()
        count(found.nbytes)
        origin = rows.get(key.rpartition('.')[0])
        new = 0
        if origin is not None and (len(expected), len(found)) == (origin.in_file, len(origin.origins)):
            new = len(found) - len(origin.kept)
            expected, found = expected[origin.taken], found[origin.kept]
        difference, largest = describe_difference(expected, found)
        compared.append(Comparison(key, places[key], difference, largest, new))
    return compared


def describe_difference(expected: np.ndarray, found: np.ndarray) -> tuple[str | None, float]:
    """None and 0 where two float32 arrays are bit-equal; else what differs, and the largest difference."""
    if expected.shape != found.shape:
        return f'the shape is {found.shape} where the file has {expected.shape}', float('nan')
    expected, found = np.ascontiguousarray(expected), np.ascontiguousarray(found)
    differ = expected.view(np.int32) != found.view(np.int32)
    if not differ.any():
        return None, 0.
    largest = float(np.abs(expected.astype(np.float64) - found).max())
    return f'{int(differ.sum()):,} of {differ.size:,} numbers differ, by {largest:.3g} at most', largest
