"""What cannot be built from a config is one line that names its place there, instead of a traceback.

Whatever a class raises while it is built from a config is taken for a mistake in the config. ``MGDET_TRACEBACK=1``
shows what led to it.
"""
from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from mgdet_plugin.common.errors import SHOW_ALL, UserError


class BuildError(UserError):
    """A part of a config that cannot be built."""


_configs: list[Mapping[str, Any]] = []  # those in use, the newest last


@contextmanager
def building_from(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Let what cannot be built in the block be looked up in a config."""
    _configs.append(_plain(cfg))
    try:
        yield
    finally:
        _configs.pop()


def patch_registry(module: ModuleType) -> None:
    """Let a registry say in one line what it cannot build."""
    build = module.Registry.build

    @wraps(build)
    def build_or_say(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return build(self, cfg, *args, **kwargs)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            place = _place(cfg) or f'{self.name} {_kind(cfg)}'
            raise BuildError(f'{place} cannot be built: {_said(error)}') from error

    module.Registry.build = build_or_say


def patch_runner(module: ModuleType) -> None:
    """Let a runner's config be known to what is built for it, and say in one line where it cannot begin."""
    begin = module.Runner.from_cfg.__func__

    @wraps(begin)
    def from_cfg(cls: type, cfg: Any) -> Any:
        _configs.append(_plain(cfg))  # loops and optimizer are built later
        try:
            return begin(cls, cfg)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            raise UserError(f'a run of this config cannot begin: {_said(error)}') from error

    module.Runner.from_cfg = classmethod(from_cfg)


def _plain(cfg: Any) -> Mapping[str, Any]:
    """A config as a mapping, which mmengine's ``Config`` is not."""
    return cfg._cfg_dict if hasattr(cfg, '_cfg_dict') else cfg


def find_place(cfg: Any, wanted: Mapping[str, Any], path: str = '') -> str | None:
    """The dotted path in a config of a part of the type ``wanted`` has, whose entries agree with those there."""
    if isinstance(cfg, Mapping):
        if path and cfg.get('type') == wanted.get('type') and all(
                wanted[key] == value for key, value in cfg.items() if key in wanted):
            return path
        entries = [(f'{path}.{key}' if path else str(key), value) for key, value in cfg.items()]
    else:
        members = cfg if isinstance(cfg, (list, tuple)) else ()
        entries = [(f'{path}[{index}]', each) for index, each in enumerate(members)]
    return next((found for place, each in entries if (found := find_place(each, wanted, place))), None)


def _place(part: Any) -> str | None:
    """Where a part is in the newest config, with its type."""
    if not _configs or not isinstance(part, Mapping) or 'type' not in part:
        return None
    path = find_place(_configs[-1], part)
    return path and f'{path} ({_kind(part)})'


def _kind(part: Any) -> str:
    kind = part.get('type') if isinstance(part, Mapping) else part
    return str(getattr(kind, '__name__', kind))


def _said(error: Exception) -> str:
    """What an error says; of an assertion without words, what it asserts."""
    text = ' '.join(str(error).split())
    if isinstance(error, AssertionError) and not text:
        text = str(traceback.extract_tb(error.__traceback__)[-1].line)
    hint = '' if os.environ.get(SHOW_ALL) else f' ({SHOW_ALL}=1 shows all)'
    return f'{type(error).__name__}: {text}{hint}'
