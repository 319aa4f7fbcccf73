"""Verify an import: read both files again and compare every tensor bit for bit."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import byte_progress, check_destination, write_together
from mgdet_plugin.weights.checkpoint import Checkpoint, read_checkpoint
from mgdet_plugin.weights.comparison import Comparison, Rows, compare, row_origins
from mgdet_plugin.weights.pairing import BY_FORMAT, Source, open_source
from mgdet_plugin.weights.report import Report, file_line, table

SHOWN = 5


def verify_import(src: str | Path, ckpt: str | Path, *, with_keras: bool = False, image: str | Path | None = None,
                  report: str | Path | None = None) -> Report:
    """Compare a checkpoint with the Keras file it was imported from.

    Args:
        src: Keras weights file, or one of Darknet's.
        ckpt: Checkpoint of the model or of its backbone.
        with_keras: Also load the file with Keras into the network built by Keras, and compare every variable and the
            outputs of both networks on an image.
        image: Image for that. Default: the photograph that comes with matplotlib.
        report: Where to write the report as JSON.

    Returns:
        The report; ``report['agrees']`` is the verdict.

    Raises:
        UserError: A file cannot be read, or they do not hold the same network.
    """
    if image is not None and not with_keras:
        raise UserError('--image is for --with-keras')
    if report is not None:
        for path in (src, ckpt):
            check_destination(Path(report), Path(path))
    checkpoint = read_checkpoint(ckpt)
    with open_source(src, checkpoint.state) as source:
        if with_keras and source.pairing == BY_FORMAT:
            raise UserError(f'{source.name} is a Darknet file, which Keras does not read; verify it without '
                            '--with-keras')
        total = 4 * sum(checkpoint.state[key].numel() for key in source.places)
        rows = row_origins(checkpoint)
        with byte_progress(total, 'verify') as progress:
            compared = compare(source.places, source.read, checkpoint, rows, progress.update)
    result = make_report(source, checkpoint, compared, rows)
    if with_keras:
        from mgdet_plugin.weights.verify_keras import compare_with_keras  # imports mmdet, which takes seconds
        result['keras'] = compare_with_keras(source, checkpoint, rows, None if image is None else Path(image))
        result['agrees'] = result['agrees'] and result['keras']['agrees']
    if report is not None:
        text = json.dumps(result, indent=1).encode() + b'\n'
        write_together({Path(report): lambda stream: stream.write(text)})
    return result


def make_report(source: Source, checkpoint: Checkpoint, compared: Sequence[Comparison],
                rows: Mapping[str, Rows]) -> Report:
    """The account of a verification, plain types only."""
    parts: dict[str, dict[str, Any]] = {}
    for item in compared:
        part = parts.setdefault(item.key.partition('.')[0], dict(tensors=0, equal=0, largest_difference=None))
        part['tensors'] += 1
        part['equal'] += item.difference is None
        if item.difference is not None and not np.isnan(item.largest):
            part['largest_difference'] = max(item.largest, part['largest_difference'] or 0.)
    differing = [item for item in compared if item.difference is not None]
    origin = next(iter(rows.values()), None)
    return dict(
        source=dict(file=Path(source.name).name, bytes=source.size, sha256=source.sha256, part=source.part,
                    pairing=source.pairing),
        checkpoint=dict(file=Path(checkpoint.name).name, bytes=checkpoint.size, sha256=checkpoint.sha256,
                        part=checkpoint.part, batches_seen=checkpoint.batches_seen),
        parts=parts,
        rows=None if origin is None else dict(kept=len(origin.kept), new=origin.origins.count(None)),
        differing=[dict(tensor=item.key, source=item.place, difference=item.difference) for item in differing],
        notes=[*checkpoint.notes, *make_notes(source, checkpoint, bool(differing))],
        keras=None,
        agrees=not differing)


def make_notes(source: Source, checkpoint: Checkpoint, differs: bool) -> list[str]:
    """Facts that explain the result."""
    notes = []
    imported = checkpoint.meta.get('keras_import')
    recorded = imported.get('source') if isinstance(imported, dict) else None
    if isinstance(recorded, dict) and recorded.get('sha256') != source.sha256:
        notes.append(f'the checkpoint says it was imported from another file: {recorded.get("file")!r}, sha256 '
                     f'{str(recorded.get("sha256"))[:64]}')
    if differs and checkpoint.batches_seen:
        notes.append(f'the checkpoint was trained ({checkpoint.batches_seen:,} batches by its counters), which changes '
                     'weights; verify the checkpoint as it was imported')
    if differs and checkpoint.part == 'model' and not isinstance(imported, dict):
        notes.append('the checkpoint has no record of an import, so all its rows must be those of the file')
    return notes


def verify_summary(report: Report) -> str:
    """The table a person reads."""
    source, checkpoint = report['source'], report['checkpoint']
    rows = [
        ('source', file_line(source)),
        ('against', file_line(checkpoint)),
        ('paired', source['pairing']),
    ]
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
    if report['keras']:
        rows += [('keras', line) for line in report['keras']['lines']]
    rows += [('note', note) for note in report['notes']]
    rows.append(('verdict', 'agrees' if report['agrees'] else 'does NOT agree'))
    return table(rows)
