"""What an import did: for a person, for a machine, and on disk all at once or not at all."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from mgdet_plugin.errors import UserError

Report = dict[str, Any]


def summary(report: Report) -> str:
    """The table a person reads."""
    source, found = report['source'], report['found']
    version = f'Keras {found["keras_version"]}' if found['keras_version'] else 'Keras version not stored'
    rows = [
        ('file', f'{source["file"]}, {source["bytes"] / 1e6:.1f} MB, sha256 {source["sha256"]}'),
        ('layout', f'{found["layout"]}, {version}'),
        ('holds', f'a {found["part"]}: {found["layers"]}'),
        ('order', found['order']),
    ]
    if report['classes']:
        rows.append(('classes', report['classes']['text']))
    weights: Counter[str] = Counter()
    tensors: Counter[str] = Counter()
    for tensor in report['tensors']:
        module = tensor['destination'].partition('.')[0]
        weights[module] += prod(tensor['shape'])
        tensors[module] += 1
    rows += [(module, f'{tensors[module]} tensors, {weights[module]:,} numbers') for module in tensors]
    rows += [('not used', f'{len(paths)} arrays: {reason}') for reason, paths in report['not_used'].items()]
    rows += [('note', note) for note in report['notes']]
    rows.append(('written', f'{report["written"]}'))
    return '\n'.join(f'{label:<10}{text}' for label, text in rows)


def check_destination(path: Path, source: Path) -> None:
    """Refuse a path nothing can be written to, before any work.

    Raises:
        UserError: The folder is missing or closed, the path is a folder, or it is the file to import.
    """
    if not path.parent.is_dir():
        raise UserError(f'cannot write {path}: there is no folder {path.parent}; make it first')
    if path.is_dir():
        raise UserError(f'cannot write {path}: it is a folder; give the path of a file')
    if not os.access(path.parent, os.W_OK):
        raise UserError(f'cannot write {path}: no permission to write in {path.parent}')
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f'cannot write {path}: it is the file to import; give another path')


def write_together(writers: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Write several files so that each is whole or untouched.

    All are written to temporary files beside them and synced before the first takes its place.

    Args:
        writers: Path -> what writes its content to an opened file; the last path appears last.

    Raises:
        UserError: A file cannot be written (a full disk, no permission).
    """
    staged: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, write in writers.items():
            temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
            with temporary.open('wb') as stream:
                staged.append((temporary, path))
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in staged:
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        raise UserError(f'cannot write {path}: {error}; nothing was written') from error
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)
