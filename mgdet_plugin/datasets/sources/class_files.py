"""Files of class names that lie beside annotations which number their classes."""
from __future__ import annotations

from pathlib import Path

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import text_names
from mgdet_plugin.datasets.sources.annotated import Files

NAMES = ('classes.txt', 'obj.names', 'names.txt', 'class_names.txt', 'labels.txt', 'predefined_classes.txt')


def is_class_file(path: Path) -> bool:
    """Whether a file's name is one of those that class lists have."""
    return path.name in NAMES or path.suffix == '.names' or path.stem.endswith('_classes')


def class_names(files: Files, why: str) -> tuple[str, ...]:
    """The names in the one class file there is.

    Raises:
        UserError: there is none, or several that differ.
    """
    there = [path for path in files.paths if is_class_file(path)]
    if files.given.is_file():
        there += [path for path in sorted(files.root.iterdir()) if path.is_file() and is_class_file(path)]
    if not there:
        raise UserError(f'{files.given}: {why} and no file names them (looked for: {", ".join(NAMES)}); give one by '
                        '--classes, one name a line')
    names = {text_names(path, str(path)): path for path in there}
    if len(names) > 1:
        raise UserError(f'{files.given}: the class files {" and ".join(map(str, names.values()))} differ; give one by '
                        '--classes')
    return next(iter(names))
