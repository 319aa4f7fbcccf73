"""The TensorFlow project's YAML files: read into flat keys, and told apart."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from mgdet_plugin.common.errors import UserError

Kind = Literal['training', 'evaluation', 'inference']
_SECTIONS: dict[str, Kind] = dict(training='training', evaluation='evaluation', detection='inference')
_MOST_BYTES = 2 ** 20


@dataclass(frozen=True)
class SettingsFile:
    """A file of settings.

    Attributes:
        path: The file.
        kind: What it is for.
        values: Dotted key -> value; a list is a value.
    """

    path: Path
    kind: Kind
    values: Mapping[str, Any]

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its paths may be seen from: the working folder, its own and those above it, as in its project."""
        here = self.path.absolute().parent
        return (Path(), here, *list(here.parents)[:2])

    def find(self, name: str) -> Path | None:
        """The file of a path that it names, None where there is none."""
        return next((folder / name for folder in self.folders if (folder / name).is_file()), None)


def read_settings(path: Path) -> SettingsFile:
    """Read a training, evaluation or inference file.

    Raises:
        UserError: It is not there, no YAML, or none of the three.
    """
    values = flat(load_yaml(path))
    found = [kind for section, kind in _SECTIONS.items() if any(key.startswith(f'{section}.') for key in values)]
    if len(found) != 1:
        raise UserError(f'{path} has {"no section" if not found else "several"} of '
                        f'{", ".join(_SECTIONS)}, by one of which a training, evaluation or inference file of the '
                        'TensorFlow project is known; give one such file')
    return SettingsFile(path, found[0], values)


def load_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: It is not there, too large, no YAML, or holds something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f'{path} is larger than {_MOST_BYTES:,} bytes, no file of settings')
        content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read as text: {error}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f'{path} is no valid YAML ({str(error).splitlines()[0]}); correct it') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no settings (a mapping of keys), but {str(content)[:40]!r}')
    return content


def flat(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted key -> value; an empty section is a key without a value."""
    return dict(_flat(content, ''))


def _flat(content: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f'{above}{key}.')
        else:
            yield f'{above}{key}', value or None if isinstance(value, Mapping) else value
