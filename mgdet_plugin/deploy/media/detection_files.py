"""What was found, in files other programs read: COCO's JSON, YOLO's labels, crops."""
from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from mgdet_plugin.common.files import write_together
from mgdet_plugin.deploy.media.seen import Seen, Sink


class Records(Sink):
    """One COCO file of everything, written at the end; until then it lies on the disk, so a camera may run for days.

    An image is a picture or a frame (``frame``, from 0, and ``time`` in seconds); an annotation has ``score`` and,
    where tracked, ``track_id``, beside COCO's fields; categories are numbered from 1 in the model's order.

    Args:
        path: JSON to write, in a folder that is there.
        classes: Names of the classes.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._path = path
        self._categories = [dict(id=place, name=name) for place, name in enumerate(classes, 1)]
        self._images, self._annotations = _Spool(path.parent), _Spool(path.parent)

    def take(self, seen: Seen) -> None:
        """Note an image and its annotations."""
        height, width = seen.frame.pixels.shape[:2]
        image = 1 + self._images.count
        at = {} if seen.frame.number is None else dict(frame=seen.frame.number, time=round(seen.frame.time, 3))
        self._images.add(dict(id=image, file_name=Path(seen.media.name).as_posix(), width=width, height=height, **at))
        for each in seen.detections:
            left, top, right, bottom = (round(side, 2) for side in each.corners)
            box = [left, top, round(right - left, 2), round(bottom - top, 2)]
            track = {} if each.track is None else dict(track_id=each.track)
            self._annotations.add(dict(
                id=1 + self._annotations.count, image_id=image, category_id=1 + each.label, bbox=box,
                area=round(box[2] * box[3], 2), iscrowd=0, score=round(each.score, 4), **track))

    def close(self) -> None:
        """Write the file."""
        write_together({self._path: self._write})

    def _write(self, stream: BinaryIO) -> None:
        stream.write(b'{"images": [\n')
        self._images.copy_to(stream)
        stream.write(b'],\n"annotations": [\n')
        self._annotations.copy_to(stream)
        stream.write(f'],\n"categories": {json.dumps(self._categories)}}}\n'.encode())


class _Spool:
    """Entries of a JSON list in a file that goes with the process."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this

    def add(self, entry: Mapping[str, Any]) -> None:
        self._stream.write((',\n' if self.count else '').encode() + json.dumps(entry).encode())
        self.count += 1

    def copy_to(self, stream: BinaryIO) -> None:
        self._stream.seek(0)
        shutil.copyfileobj(self._stream, stream)


class Labels(Sink):
    """YOLO's text of each picture or frame, ``class x y w h`` in shares of it, and ``classes.txt``.

    Args:
        folder: Folder to write to.
        classes: Names of the classes.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder = folder
        self._names = '\n'.join(classes) + '\n'

    def take(self, seen: Seen) -> None:
        """Write the labels of one; of one without objects an empty file, which says so."""
        path = self._folder / f'{seen.stem}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = seen.frame.pixels.shape[:2]
        lines = []
        for each in seen.detections:
            left, top, right, bottom = each.corners
            shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width,
                      (bottom - top) / height)
            lines.append(' '.join([str(each.label), *(f'{share:.6f}' for share in shares)]) + '\n')
        write_together({path: lambda stream: stream.write(''.join(lines).encode())})

    def close(self) -> None:
        """Name the classes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_together({self._folder / 'classes.txt': lambda stream: stream.write(self._names.encode())})


class Crops(Sink):
    """Each object as a picture of its own, in a folder a class.

    Args:
        folder: Folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, seen: Seen) -> None:
        """Cut the objects out."""
        height, width = seen.frame.pixels.shape[:2]
        for number, each in enumerate(seen.detections, 1):
            left, top = (max(0, int(side)) for side in each.corners[:2])
            right, bottom = min(width, ceil(each.corners[2])), min(height, ceil(each.corners[3]))
            if right <= left or bottom <= top:
                continue
            name = re.sub(r'[^\w .-]', '_', seen.classes[each.label])
            path = self._folder / name / f'{seen.stem}_{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_together({path: partial(_write_jpeg, seen.frame.pixels[top:bottom, left:right])})


def _write_jpeg(pixels: np.ndarray, stream: BinaryIO) -> None:
    stream.write(cv2.imencode('.jpg', pixels)[1].tobytes())
