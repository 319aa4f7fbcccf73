"""Files that come with the package, in a checkout or installed: configs, tools, the demo's weights, mmdet's scripts."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

from mgdet_plugin.common.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = PACKAGE / '.mim'  # where packages for mmengine have them
ROOT = _INSTALLED if _INSTALLED.is_dir() else PACKAGE.parent
"""What holds ``configs``, ``tools`` and ``weights``; the checkout, where the package lies in one."""
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'
DEMO_WEIGHTS = ROOT / 'weights' / 'digits_source.h5'  # of the small model, see weights/README.md
PREFIXES = ('mgdet_plugin::', 'mgdet::')
SUFFIXES = ('.py', '.yml', '.yaml', '.json')  # of configs that mmengine reads


def config_path(name: str | Path) -> Path:
    """The file of a config.

    Args:
        name: Its path; or, where there is no such file, the name of a config of the package, below ``configs`` and
            with or without ``.py`` (``mgdet_nano_staged``, ``scratch/multigrid_nano_bccd.py``), which may begin with
            ``mgdet_plugin::``, as mmengine names configs of packages.

    Raises:
        UserError: There is neither, with the nearest name that there is; or the file is none of a config.
    """
    path = Path(name)
    if path.is_dir():
        raise UserError(f'the config {name} is a folder; give the path of a config')
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f'the config {name} is no {", ".join(SUFFIXES)}; give a config, such as those in {CONFIGS}')
        return path
    text = str(name)
    for prefix in (*PREFIXES, 'configs/'):
        text = text.removeprefix(prefix)
    own = own_config(text)
    if own is not None:
        return own
    there = [path.relative_to(folder).as_posix() for folder in (Path(name).parent, CONFIGS)
             for path in (*folder.glob('*.py'), *folder.glob('scratch/*.py')) if path.is_file()]
    raise UserError(f'the config {name} is not there{nearest(Path(text).name, there)}; configs lie in {CONFIGS}')


def own_config(name: str) -> Path | None:
    """A config of the package by its name below ``configs``, with or without ``.py``."""
    path = CONFIGS / (name if name.endswith('.py') else f'{name}.py')
    return path if name and path.is_file() else None


def mmdet_script(name: str) -> Path:
    """Path of one of the scripts mmdet ships, by its place under ``tools`` ('analysis_tools/get_flops').

    Raises:
        UserError: If mmdet ships none of that name.
        ModuleNotFoundError: If there is no mmdet.
    """
    spec = find_spec('mmdet')  # found, not imported
    if spec is None:
        raise ModuleNotFoundError("No module named 'mmdet'", name='mmdet')
    folder = Path(str(spec.origin)).parent / '.mim' / 'tools'
    path = folder / (name if name.endswith('.py') else f'{name}.py')
    if folder.resolve() not in path.resolve().parents or not path.is_file():
        names = sorted(str(each.relative_to(folder).with_suffix('')) for each in folder.rglob('*.py'))
        raise UserError(f"mmdet ships no tool '{name}'; it ships {', '.join(names)}")
    return path


def shown_config(path: str | Path) -> str:
    """A config's path as a command line would name it: the shortest of those that lead to it."""
    path, below = Path(os.path.abspath(path)), os.path.relpath(path)
    own = path.is_relative_to(CONFIGS) and (CONFIGS.parent == _INSTALLED or below.startswith(os.pardir))
    return path.relative_to(CONFIGS).as_posix() if own else min(str(path), below, key=len)


def command(name: str, *words: object) -> str:
    """A command as a person would type it, at the door this process came in by."""
    console = ROOT == _INSTALLED or any(Path(word).stem == 'mgdet' for word in sys.orig_argv[:2])
    return ' '.join([f'mgdet {name}' if console else f'python tools/{name}.py', *(quote(str(word)) for word in words)])


def nearest(name: str, there: Iterable[str], alike: float = 0.6) -> str:
    """The end of a line about a name that is not there: the one it may have meant, if any is ``alike`` (0 to 1)."""
    named = {each.casefold(): each for each in there}
    found = get_close_matches(name.casefold(), named, 1, alike)
    return f'; the nearest name is {named[found[0]]}' if found else ''
