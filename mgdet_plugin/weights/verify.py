"""Verify an import: read the file again, and compare every tensor of the checkpoint with it, bit for bit."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, write_together
from mgdet_plugin.common.name_lists import MAX_CLASSES
from mgdet_plugin.weights.checkpoint import Checkpoint, read_checkpoint, to_keras
from mgdet_plugin.weights.container.archive import open_weights
from mgdet_plugin.weights.container.weights_file import WeightsFile
from mgdet_plugin.weights.import_report import Report, as_json, decided_by, file_line, table
from mgdet_plugin.weights.mapping.architecture import BOX_ROWS
from mgdet_plugin.weights.mapping.layout import FileLayout, assign, resolve_layers

SHOWN = 5
IMPORT_AGAIN = 'import the file again'


def verify_import(src: str | Path, ckpt: str | Path, *, report: str | Path | None = None) -> Report:
    """Compare a checkpoint with the Keras file it was imported from.

    Args:
        src: Keras weights file, or one of Darknet's.
        ckpt: Checkpoint of the model or of its backbone.
        report: Where to write the report as JSON.

    Returns:
        The report; ``report['agrees']`` is the verdict.

    Raises:
        UserError: A file cannot be read, or they do not hold the same network.
    """
    if report is not None:
        for path in (src, ckpt):
            check_destination(Path(report), Path(path))
    with open_weights(src) as weights:
        layout = resolve_layers(weights)
        checkpoint = read_checkpoint(ckpt)
        if layout.part == 'backbone' and checkpoint.part == 'model':
            raise UserError(f'{weights.name} is a backbone file, and the checkpoint holds a whole model; give the file '
                            'the checkpoint was imported from')
        picked = class_origins(checkpoint)
        compared = list(compare_tensors(weights, layout, checkpoint, picked))
    result = verify_report(weights, layout, checkpoint, compared, picked)
    if report is not None:
        write_together({Path(report): as_json(result)})
    return result


class ClassOrigins(NamedTuple):
    """Where the class rows of a checkpoint came from."""

    in_file: int  # classes of the file
    rows: tuple[int | None, ...]  # for every class the class of the file, None where its row was drawn anew

    def kept(self, outputs: int) -> tuple[list[int], list[int]]:
        """Rows of a prediction of so many channels that came from the file, and the rows of the file they came from."""
        others = outputs - len(self.rows)  # box, objectness and anchors
        pairs = [(row, origin) for row, origin in enumerate(self.rows) if origin is not None]
        return ([*range(others), *(others + row for row, _ in pairs)],
                [*range(others), *(others + origin for _, origin in pairs)])


def class_origins(checkpoint: Checkpoint) -> ClassOrigins | None:
    """Where class rows came from by the checkpoint's own account, ``meta.keras_import.classes.rows``.

    Imports before rows were recorded kept all class rows or, with ``--classes``, none. None where all rows must be in
    their own places, as without an account; one that does not fit these files is refused.
    """
    imported = checkpoint.meta.get('keras_import')
    classes = imported.get('classes') if isinstance(imported, dict) else None
    if not isinstance(classes, dict) or checkpoint.part == 'backbone':
        return None
    in_file: Any = classes.get('file')
    written, entries = classes.get('written'), classes.get('rows')
    rows: list[Any] = []
    if type(in_file) is int and isinstance(entries, list):
        rows = [entry.get('source_row', -1) if isinstance(entry, dict) else -1 for entry in entries]
    elif type(in_file) is int and 'new' in classes and type(written) is int and 0 < written <= MAX_CLASSES:
        rows = [None] * written if classes['new'] else list(range(in_file))
    if not rows or not all(row is None or (type(row) is int and 0 <= row < in_file) for row in rows):
        raise UserError(f'{checkpoint.name}: its meta does not say which class rows were kept; {IMPORT_AGAIN}')
    if rows == list(range(in_file)):
        return None
    narrow = next((outputs for outputs in checkpoint.outputs if outputs - len(rows) <= BOX_ROWS), None)
    if narrow is not None:
        raise UserError(f'{checkpoint.name}: its meta counts {len(rows)} classes, which do not fit predictions '
                        f'of {narrow} channels; {IMPORT_AGAIN}')
    return ClassOrigins(in_file, tuple(rows))


class Comparison(NamedTuple):
    """What became of one tensor."""

    key: str  # in the checkpoint
    place: str  # where its array lies in the file
    difference: str | None  # None where all numbers compared are bit-equal; else what differs
    largest: float  # largest difference, NaN where shapes or NaN make it meaningless


def compare_tensors(weights: WeightsFile, layout: FileLayout, checkpoint: Checkpoint,
            picked: ClassOrigins | None) -> Iterator[Comparison]:
    """Compare every tensor Keras knows; of predictions whose class rows were replaced, the rows kept."""
    assignments = assign(layout, checkpoint.part)
    total = 4 * sum(checkpoint.state[item.key].numel() for item in assignments)
    with byte_progress(total, 'verify') as progress:
        for item in assignments:
            expected = weights.read(item.source.path, item.source.shape)
            found = to_keras(checkpoint.state[item.key])
            progress.update(found.nbytes)
            if picked is not None and '.predict_convs.' in item.key:
                outputs = found.shape[-1]
                if expected.shape[-1] == outputs - len(picked.rows) + picked.in_file:
                    ours, theirs = picked.kept(outputs)
                    expected, found = expected[..., theirs], found[..., ours]
            yield Comparison(item.key, item.source.path, *describe_difference(expected, found))


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


def verify_report(weights: WeightsFile, layout: FileLayout, checkpoint: Checkpoint, compared: Sequence[Comparison],
                picked: ClassOrigins | None) -> Report:
    """The account of a verification, plain types only."""
    parts: dict[str, dict[str, Any]] = {}
    for item in compared:
        part = parts.setdefault(item.key.partition('.')[0], dict(tensors=0, equal=0, largest_difference=None))
        part['tensors'] += 1
        part['equal'] += item.difference is None
        if item.difference is not None and not np.isnan(item.largest):
            part['largest_difference'] = max(item.largest, part['largest_difference'] or 0.)
    differing = [item for item in compared if item.difference is not None]
    return dict(
        source=dict(file=Path(weights.name).name, bytes=weights.size, sha256=weights.sha256, part=layout.part,
                    pairing=decided_by(weights, layout)),
        checkpoint=dict(file=Path(checkpoint.name).name, bytes=checkpoint.size, sha256=checkpoint.sha256,
                        part=checkpoint.part, batches_seen=checkpoint.batches_seen),
        parts=parts,
        rows=None if picked is None else dict(kept=len(picked.kept(checkpoint.outputs[0])[0]),
                                              new=picked.rows.count(None)),
        differing=[dict(tensor=item.key, source=item.place, difference=item.difference) for item in differing],
        notes=[*checkpoint.notes, *explain(weights.sha256, checkpoint, bool(differing))],
        agrees=not differing)


def explain(sha256: str, checkpoint: Checkpoint, differs: bool) -> list[str]:
    """Facts that explain the result."""
    notes = []
    imported = checkpoint.meta.get('keras_import')
    recorded = imported.get('source') if isinstance(imported, Mapping) else None
    if isinstance(recorded, Mapping) and recorded.get('sha256') != sha256:
        notes.append(f'the checkpoint says it was imported from another file: {recorded.get("file")!r}, sha256 '
                     f'{str(recorded.get("sha256"))[:64]}')
    if differs and checkpoint.batches_seen:
        notes.append(f'the checkpoint was trained ({checkpoint.batches_seen:,} batches by its counters), which changes '
                     'weights; verify the checkpoint as it was imported')
    if differs and checkpoint.part == 'model' and not isinstance(imported, Mapping):
        notes.append('the checkpoint has no record of an import, so all its rows must be those of the file')
    return notes


def verify_summary(report: Report) -> str:
    """The table a person reads."""
    rows = [('source', file_line(report['source'])), ('against', file_line(report['checkpoint'])),
            ('paired', report['source']['pairing'])]
    for name, part in report['parts'].items():
        differ, largest = part['tensors'] - part['equal'], part['largest_difference']
        by = '' if largest is None else f', by {largest:.3g} at most'
        rows.append((name, f'{part["tensors"]} tensors, ' + (f'{differ} differ{by}' if differ else 'all bit-equal')))
    if report['rows']:
        rows.append(('rows', f'{report["rows"]["kept"]} of every prediction kept and compared, {report["rows"]["new"]} '
                             'drawn anew and not compared'))
    rows += [('differs', f'{item["tensor"]} and {item["source"]}: {item["difference"]}')
             for item in report['differing'][:SHOWN]]
    if len(report['differing']) > SHOWN:
        rows.append(('differs', f'and {len(report["differing"]) - SHOWN} more'))
    rows += [('note', note) for note in report['notes']]
    rows.append(('verdict', 'agrees' if report['agrees'] else 'does NOT agree'))
    return table(rows)
