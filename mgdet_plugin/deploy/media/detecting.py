"""A predictor over all that sources name, and what is written of it."""
from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require
from mgdet_plugin.common.files import check_folder
from mgdet_plugin.deploy.media.find_media import find_media
from mgdet_plugin.deploy.thresholds import class_thresholds

SCORE_THR = 0.3
FOLDER = Path('work_dirs/detect')
LOW = 0.5  # of the score a detection needs: from there on it counts where it goes on with a track


@dataclass(frozen=True)
class Wish:
    """What :func:`detect_media` is asked for beside sources and weights.

    Attributes:
        out: Folder to write to, new or empty. Default: ``work_dirs/detect``, with a number where that is taken.
        draw: Whether pictures and videos are written with what is found drawn on them.
        txt: Whether YOLO's labels are written.
        crops: Whether each object is written as a picture.
        show: Whether a window shows what is found.
        batch: Pictures, frames of a video or slices that go through the network at once.
        side: (width, height) in pixels of the slices of large pictures; (0, 0): as large as the network's input. None:
            no slices.
        track: Whether objects are followed from frame to frame.
        every: Of so many frames of a video one is looked at.
        seconds: After which a video, camera or stream is left.
    """

    out: str | Path | None = None
    draw: bool = True
    txt: bool = False
    crops: bool = False
    show: bool = False
    batch: int = 1
    side: tuple[int, int] | None = None
    track: bool = False
    every: int = 1
    seconds: float | None = None

    def checked(self) -> Wish:
        """The wish itself.

        Raises:
            UserError: A number is out of its range, or there is no screen.
        """
        require(is_whole(self.batch, 1), 'the batch must be a whole number from 1', self.batch)
        require(is_whole(self.every, 1), 'of N frames one is looked at: N must be a whole number from 1', self.every)
        require(self.seconds is None or (is_number(self.seconds) and self.seconds > 0),
                'the seconds of a video must be a number above 0', self.seconds)
        require(self.side is None or all(is_whole(each, 32) for each in self.side) or self.side == (0, 0),
                'the side of a slice must be a whole number of pixels from 32', self.side and self.side[0])
        if self.show and sys.platform == 'linux' and not (os.environ.get('DISPLAY') or
                                                          os.environ.get('WAYLAND_DISPLAY')):
            raise UserError('there is no screen to show anything on (DISPLAY is not set); leave --show out')
        return self


@dataclass
class Detected:
    """What came of it.

    Attributes:
        out: The folder written to.
        pictures: Pictures looked at.
        frames: Frames looked at.
        objects: Class -> how many were found.
        seconds: Of looking, without loading the model.
        failures: A line on each source that could not be read, or not to its end.
        is_stopped: Whether a person stopped it.
        is_live: Whether what was stopped is a camera or a stream, which have no other end.
    """

    out: Path
    pictures: int = 0
    frames: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    is_stopped: bool = False
    is_live: bool = False

    def line(self) -> str:
        """What was found, for a person."""
        looked = ' and '.join(f'{number:,} {what}{"s" * (number != 1)}' for number, what in (
            (self.pictures, 'picture'), (self.frames, 'frame')) if number)
        classes = ', '.join(f'{name} {count:,}' for name, count in self.objects.most_common())
        total = self.objects.total()
        return (f'{looked}: {total:,} object{"s" * (total != 1)}' + (f' ({classes})' if classes else '') +
                f', {self.seconds / (self.pictures + self.frames):.3f} s each; written to {self.out}')


def detect_media(sources: Sequence[str], weights: str | Path, config: str | Path | None = None,
                 score_thr: float | Mapping[str | None, float] = SCORE_THR, wish: Wish = Wish(),
                 device: str | None = None, fast: bool = False, threads: int | None = None) -> Detected:
    """Find the objects of pictures, videos, cameras and streams and write what was found.

    In the folder lie drawn pictures and videos under the names of their sources, ``detections.json`` (COCO's form, with
    scores), and as asked for ``labels/`` and ``crops/``. What cannot be read is left out; a source that breaks off, or
    a person who stops it (Ctrl-C), ends with what was found until then written.

    Args:
        sources: See :func:`~mgdet_plugin.deploy.media.find_media.find_media`.
        weights: See :func:`~mgdet_plugin.deploy.predictor.detect`; so are config, device, fast and threads.
        score_thr: Score above which a detection counts; or class -> score, that of others (default 0.3) under None.
        wish: What is written, and how it is looked.

    Raises:
        UserError: A source, number or file is wrong, or nothing at all could be read. Nothing is written.
    """
    wish.checked()
    require(Path(weights).is_file(), 'the weights must be a file that is there', str(weights))
    out = _new_folder(wish.out)
    found = find_media(sources, out)
    if wish.track and all(media.kind == 'picture' for media in found):
        raise UserError('--track follows objects from frame to frame, and there are only pictures; leave it out')
    scores: dict[str | None, float] = {None: SCORE_THR}
    scores.update(score_thr if isinstance(score_thr, Mapping) else {None: score_thr})
    from mgdet_plugin.deploy.media.looking import Looking
    from mgdet_plugin.deploy.predictor import detect
    least = {name: score * (LOW if wish.track else 1) for name, score in scores.items()}
    predictor = detect(weights, config, device, least, fast, threads)
    return Looking(predictor, class_thresholds(scores, predictor.classes, SCORE_THR), wish, out).at(found)


def _new_folder(given: str | Path | None) -> Path:
    """The folder to write to, not made yet.

    Raises:
        UserError: It holds something, or cannot be made.
    """
    if given is None:
        numbers = count(2)
        out = FOLDER
        while out.exists():
            out = FOLDER.with_name(f'{FOLDER.name}_{next(numbers)}')
        return check_folder(out)
    out = Path(given)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f'the folder {out} is not empty, and nothing in it shall be lost; give a new one with --out')
    return check_folder(out)
