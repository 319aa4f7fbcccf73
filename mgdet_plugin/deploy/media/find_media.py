"""What a person names as a source: pictures, folders, globs, videos, cameras, addresses. Imports nothing heavy."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from itertools import count, islice
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import PICTURE_SUFFIXES, files_below

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.mts',
                  '.m2ts', '.3gp', '.ogv', '.gif', '.mjpg', '.mjpeg', '.h264', '.h265')
SUFFIXES = PICTURE_SUFFIXES + VIDEO_SUFFIXES
_ADDRESS = re.compile(r'[a-zA-Z][a-zA-Z0-9+.-]*://')
_CAMERA = re.compile(r'(?:/dev/video)?(\d+)')
_WANTED = 'give a picture, a folder, a glob, a video, a camera (0, /dev/video0) or an address (http, rtsp)'

Kind = Literal['picture', 'video', 'camera', 'address']
_FILES: tuple[Kind, ...] = ('picture', 'video')


class Media(NamedTuple):
    """One picture, video, camera or address.

    Attributes:
        place: Path, number of the camera, or address.
        name: What it is called in messages and files: a path without what all sources have in common, never the
            user, password or query of an address.
        kind: An address is a picture or a stream, which is known once it is opened.
        stem: The name without its ending, where no other has the same.
    """

    place: str
    name: str
    kind: Kind
    stem: str


def find_media(given: Sequence[str], out: Path) -> list[Media]:
    """Everything that sources name, each once: files by folder and name, then cameras and addresses.

    Args:
        given: Paths of pictures and videos, folders (any depth, hidden files left out), globs (``**`` for any depth),
            numbers of cameras and addresses.
        out: Folder that is written to: what lies below it is no source.

    Raises:
        UserError: One is not there, of no known kind, or holds nothing; or a file lies below ``out``.
    """
    files: dict[str, str] = {}  # path -> the folder it was found from
    live: list[tuple[str, str, Kind]] = []
    for word in given:
        if _ADDRESS.match(word):
            parts = urlsplit(word)
            live.append((word, re.sub(r'[^\w.-]+', '_', f'{parts.hostname or ""}{parts.path}'), 'address'))
        elif os.path.isdir(word) or os.path.isfile(word) or (has_magic(word) and not os.path.exists(word)):
            folder, paths = _files_of(word)
            files.update(dict.fromkeys(_outside(paths, out, word), folder))
        elif camera := _CAMERA.fullmatch(word):
            live.append((camera[1], f'camera{camera[1]}', 'camera'))
        else:
            raise UserError(f'the source {word} is not there (seen from {os.getcwd()}); {_WANTED}')
    base = os.path.commonpath([os.path.abspath(folder) for folder in files.values()]) if files else ''
    named = {os.path.relpath(path, base): path for path in files}
    return list(_with_stems([
        *((named[name], name, _kind_of(named[name])) for name in sorted(named)), *dict.fromkeys(live)]))


def _kind_of(path: str) -> Kind:
    """What a file is by its ending; a GIF that moves is a video, one that stands still a picture."""
    if not path.lower().endswith('.gif'):
        return 'picture' if path.lower().endswith(PICTURE_SUFFIXES) else 'video'
    from PIL import Image
    try:
        with Image.open(path) as opened:
            return 'video' if getattr(opened, 'is_animated', False) else 'picture'
    except (OSError, ValueError, Image.DecompressionBombError):
        return 'picture'


def _with_stems(found: Iterable[tuple[str, str, Kind]]) -> Iterator[Media]:
    """Each with a stem of its own: without its ending, with it where that is another's, with a number after both."""
    stems: set[str] = set()
    for place, name, kind in found:
        endings = (f'{name}_{number}' for number in count(2))
        stem = next(each for each in (os.path.splitext(name)[0] if kind in _FILES else name, name,
                                      *islice(endings, len(stems))) if each not in stems)
        stems.add(stem)
        yield Media(place, name if kind in _FILES else stem, kind, stem)


def _files_of(word: str) -> tuple[str, list[str]]:
    """The folder that a path, a folder or a glob begins in, and the pictures and videos it names."""
    if os.path.isdir(word):
        found = list(files_below(word, SUFFIXES))
        if not found:
            raise UserError(f'the folder {word} holds no picture or video ({", ".join(SUFFIXES)})')
        return word, found
    if os.path.isfile(word):
        if not word.lower().endswith(SUFFIXES):
            raise UserError(f'{word} is neither a picture nor a video by its ending ({", ".join(SUFFIXES)}); {_WANTED}')
        return os.path.dirname(word), [word]
    found = [path for path in glob(word, recursive=True) if path.lower().endswith(SUFFIXES) and os.path.isfile(path)]
    if not found:
        raise UserError(f'no picture or video matches {word} (seen from {os.getcwd()})')
    fixed = os.path.join(*Path(word).parts[:next(i for i, part in enumerate(Path(word).parts) if has_magic(part))], '')
    return fixed, found


def _outside(paths: Iterable[str], out: Path, word: str) -> Iterator[str]:
    """The paths that do not lie below a folder.

    Raises:
        UserError: There is none.
    """
    below = os.path.realpath(out)
    left = [path for path in paths if os.path.commonpath((os.path.realpath(path), below)) != below]
    if not left:
        raise UserError(f'the source {word} lies in {out}, the folder to write to; give another --out')
    return iter(left)
