"""A mistake in a config's file or in ``--cfg-options`` is one line: where, what, and what it may have meant.

A config's text is laid out here, too: mmengine leaves that to yapf, which takes a second or more for a config of ours,
five times before the first step and once more for each checkpoint.
"""
from __future__ import annotations

import ast
import os
import sys
import traceback
from collections.abc import Mapping
from functools import wraps
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.literals import laid_out
from mgdet_plugin.common.resources import PREFIXES, config_path, nearest, shown_config

_OF_US = ('stages', 'plan', 'keep', 'trunk_cache', 'find_unused_parameters', 'sync_bn', 'tta_model', 'tta_pipeline')
_ALIKE = 0.8  # of difflib: a new key this like a known one is a misspelt one


def patch_config(module: ModuleType) -> None:
    """Let ``Config`` say what is wrong in one line, and ``_base_`` name a config as ``mgdet_plugin::NAME``."""
    config = module.Config
    find, load, read, read_lazy, merge = (config._get_cfg_path, config.fromfile, config._file2dict,
                                          config._parse_lazy_import, config.merge_from_dict)

    @wraps(find)
    def find_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIXES):
            return str(config_path(cfg_path)), None
        path, scope = find(cfg_path, filename)
        if not Path(path).is_file():
            there = [os.path.relpath(each, Path(filename).parent) for each in Path(path).parent.glob('*.*')]
            raise UserError(f'{shown_config(filename)}: _base_ names {cfg_path}, which is not there'
                            f'{nearest(cfg_path, there)}')
        return path, scope

    def in_a_line(parse: Any) -> Any:

        @wraps(parse)
        def parse_config(filename: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return parse(filename, *args, **kwargs)
            except UserError:
                raise
            except Exception as error:  # a config is a program of the person's: whatever it raises is theirs to mend
                raise UserError(_said(str(filename), error)) from error

        return parse_config

    @wraps(load)
    def fromfile(filename: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(filename, *args, **kwargs)
        except (SyntaxError, UnicodeDecodeError, OSError) as error:  # before it is parsed
            raise UserError(_said(str(filename), error)) from error
        except ImportError as error:
            cause = error.__cause__ and error.__cause__.__context__
            if cause is None or not str(error).startswith('Failed to import custom modules'):
                raise
            raise UserError(f'{shown_config(filename)}: custom_imports: {cause}; give modules that python can import '
                            f'from {os.getcwd()} or by PYTHONPATH') from error

    @wraps(merge)
    def merge_from_dict(self: Any, options: dict[str, Any], allow_list_keys: bool = True) -> None:
        for key in options:
            if key.partition('.')[0] == 'custom_imports':
                raise UserError(f'--cfg-options {key}: modules are imported as the config is read, before options are '
                                'set; name them in the config')
            if allow_list_keys:
                _check_place(self._cfg_dict, key, options[key])
            _check_new(self._cfg_dict, key)
        merge(self, options, allow_list_keys)

    config._get_cfg_path = staticmethod(find_base)
    config._file2dict = staticmethod(in_a_line(read))
    config._parse_lazy_import = staticmethod(in_a_line(read_lazy))
    config.fromfile = staticmethod(fromfile)
    config.merge_from_dict = merge_from_dict
    config.pretty_text = property(_text)


def _text(cfg: Any) -> str:
    """What a config says, as the text of a config's file.

    Raises:
        SyntaxError: As mmengine does for a value that no text can stand for.
    """
    text = laid_out(cfg.to_dict())
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise SyntaxError(f'the config has a value that cannot be written: {(error.text or "").strip()}') from error
    return text


def _said(filename: str, error: Exception) -> str:
    """What went wrong in a config's file, and in which line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(filename)]
    syntax = error if isinstance(error, SyntaxError) and error.lineno else error.__context__
    line = syntax.lineno if isinstance(syntax, SyntaxError) else lines[-1] if lines else None
    if isinstance(syntax, SyntaxError):
        what = f'SyntaxError: {syntax.msg}'
    elif '_substitute_base_vars' in [frame.name for frame in frames]:
        what = f'{{{{_base_...}}}} names {error}, which no base has'
    else:
        what = f'{type(error).__name__}: {error}'
    return f'the config {shown_config(filename)}{f", line {line}," if line else ""} cannot be read: {what}'


def _check_place(cfg: Any, key: str, value: Any) -> None:
    """Refuse a dotted key that leads past the end of a list, to a member of one as a whole, or into what has no keys.

    Raises:
        UserError: With the part of the key that leads nowhere, and what is there.
    """
    place, done = cfg, ''
    for word in key.split('.'):
        if isinstance(place, (list, tuple)):
            if not word.isdecimal() or int(word) >= len(place):
                raise UserError(f'--cfg-options {key}: {done} is a list of {len(place)}, so the place in it is a '
                                f'number from 0 to {len(place) - 1}, got {word!r}')
            place = place[int(word)]
            if f'{done}.{word}' == key and not isinstance(value, Mapping):
                raise UserError(f'--cfg-options {key}: {value!r} cannot take the place of a whole member of {done}; '
                                f'set {done} as a whole, or a key of the member')
        elif isinstance(place, Mapping):
            if word not in place:
                return
            place = place[word]
        else:
            raise UserError(f'--cfg-options {key}: {done} is {place!r}, which has no {word!r}; set {done} as a whole')
        done = f'{done}.{word}' if done else word


def _check_new(cfg: Mapping[str, Any], key: str) -> None:
    """Refuse a key that no config has, but for one letter or two.

    Raises:
        UserError: With the key it may have meant.
    """
    runner = sys.modules.get('mmengine.runner.runner')
    known = {*cfg, *_OF_US, *(signature(runner.Runner).parameters if runner is not None else ())}
    word = key.partition('.')[0]
    meant = nearest(word, known, _ALIKE)
    if word not in known and meant:
        raise UserError(f'--cfg-options {key}: there is no {word} in the config, so nothing would read it{meant}')
