"""What cannot be built from a config is one line that names its place there, instead of a traceback.

Whatever a class raises while it is built from a config is taken for a mistake in the config. ``MGDET_TRACEBACK=1``
shows what led to it.
"""
from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from mgdet_plugin.common.errors import SHOW_ALL, UserError


class BuildError(UserError):
    """A part of a config that cannot be built."""


_configs: list[Mapping[str, Any]] = []  # those in use, the newest last
_SET_BY = dict(set_randomness='randomness', setup_env='env_cfg', build_logger='log_level',
               register_hook='priority of a hook')
"""Method of mmengine's runner that raises -> the key of the config it reads."""
_ALONE = 'it mixes pictures and belongs into the transforms of a StagedMix step'
_MEANT = {"assert 'mix_results' in results": _ALONE, "'mix_results'": _ALONE,
          'need at least one array to concatenate': 'no image is left in the dataset, by its files and filter_cfg'}
"""What libraries say -> what it means to a person."""


@contextmanager
def building_from(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Let what cannot be built in the block be looked up in a config."""
    _configs.append(_plain(cfg))
    try:
        yield
    finally:
        _configs.pop()


@contextmanager
def _retold(say: Callable[[Exception], UserError]) -> Iterator[None]:
    """Raise in place of what a block raises what ``say`` makes of it; what is in a line already stays as it is."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise say(error) from error


def patch_registry(module: ModuleType) -> None:
    """Let a registry say in one line what it cannot build."""
    build = module.Registry.build

    @wraps(build)
    def build_or_say(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        with _retold(lambda error: BuildError(
                f'{_place(cfg) or f"{self.name} {_kind(cfg)}"} cannot be built: {_said(error)}')):
            return build(self, cfg, *args, **kwargs)

    module.Registry.build = build_or_say


def patch_runner(module: ModuleType) -> None:
    """Let a runner's config be known to what is built for it, and say in one line where it cannot begin."""
    begin = module.Runner.from_cfg.__func__

    def said(error: Exception) -> UserError:
        key = next((_SET_BY[frame.name] for frame in traceback.extract_tb(error.__traceback__)
                    if frame.name in _SET_BY), '')
        return UserError(f'a run of this config cannot begin: {key and key + ": "}{_said(error)}')

    @wraps(begin)
    def from_cfg(cls: type, cfg: Any) -> Any:
        _configs.append(_plain(cfg))  # loops and optimizer are built later
        with _retold(said):
            return begin(cls, cfg)

    register = module.Runner.register_default_hooks

    @wraps(register)
    def register_default_hooks(self: Any, hooks: Mapping[str, Any] | None = None) -> None:
        """mmengine lets None switch off its own hooks alone."""
        theirs = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
        register(self, {name: hook for name, hook in (hooks or {}).items() if hook is not None or name in theirs})

    module.Runner.from_cfg = classmethod(from_cfg)
    module.Runner.register_default_hooks = register_default_hooks


@contextmanager
def step_in_a_line(steps: Sequence[Any], index: int, path: object = None) -> Iterator[None]:
    """Say in one line that a step of a pipeline cannot take a picture.

    Raises:
        UserError: What a step raises in the block, with the step, the picture and all steps.
    """
    before = ' as the steps before it leave it' if index else ''
    with _retold(lambda error: UserError(
            f'step {index} of a pipeline, {type(steps[index]).__name__}, cannot take {path or "a picture"}{before}: '
            f'{_said(error)}; the steps are {_kinds(steps)}')):
        yield


def patch_pipeline(module: ModuleType) -> None:
    """Let a pipeline say in one line which of its steps cannot take a picture, instead of a traceback amid a run."""

    def call(self: Any, data: Any) -> Any:
        path = data.get('img_path') if isinstance(data, Mapping) else None
        for index, step in enumerate(self.transforms):
            with step_in_a_line(self.transforms, index, path):
                data = step(data)
            if data is None:
                return None
        return data

    module.Compose.__call__ = call


def patch_evaluator(module: ModuleType) -> None:
    """Let metrics say in one line that they cannot measure what a detector found."""

    def in_a_line(method: Any) -> Any:

        @wraps(method)
        def measure(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _retold(lambda error: UserError(f'{_kinds(self.metrics)} cannot measure what the detector found: '
                                                 f"{_said(error)}; see the evaluator's options and files")):
                return method(self, *args, **kwargs)

        return measure

    module.Evaluator.process, module.Evaluator.evaluate = map(
        in_a_line, (module.Evaluator.process, module.Evaluator.evaluate))


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


def _kinds(parts: Sequence[Any]) -> str:
    return ', '.join(type(each).__name__ for each in parts)


def _said(error: Exception) -> str:
    """What an error says; of an assertion without words, what it asserts."""
    text = ' '.join(str(error).split())
    if isinstance(error, AssertionError) and not text:
        text = str(traceback.extract_tb(error.__traceback__)[-1].line)
    hint = '' if os.environ.get(SHOW_ALL) else f' ({SHOW_ALL}=1 shows all)'
    return f'{_MEANT.get(text) or f"{type(error).__name__}: {text}"}{hint}'
