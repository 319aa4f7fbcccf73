"""Pictures and frames through a predictor, and what is found into every sink."""
from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Self

from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tqdm import tqdm

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import DELAY, make_folder
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.media.captures import Capture, Frame, UnreadableError, fetch_picture, read_picture
from mgdet_plugin.deploy.media.detecting import Detected, Wish
from mgdet_plugin.deploy.media.detection_files import Crops, Labels, Records
from mgdet_plugin.deploy.media.drawings import Drawings, Screen, WindowClosed
from mgdet_plugin.deploy.media.find_media import Media
from mgdet_plugin.deploy.media.seen import Detection, Seen, Sink
from mgdet_plugin.deploy.media.slices import detect_in_slices
from mgdet_plugin.deploy.media.tracks import make_tracker
from mgdet_plugin.deploy.predictor import Predictor

FILE = 'detections.json'
_EVERY = 30.0  # seconds between two lines on the progress where it goes to no terminal
Follow = Callable[[InstanceData, Sequence[float], float], list[Detection]]


class Stop:
    """Within it Ctrl-C and SIGTERM (which ends services) raise KeyboardInterrupt, but not while a frame is written."""

    def __init__(self) -> None:
        self._is_put_off = self._is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self._is_asked = True
        if not self._is_put_off:
            raise KeyboardInterrupt

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """What is done in the block is done whole."""
        self._is_asked, self._is_put_off = False, True
        try:
            yield
        finally:
            self._is_put_off = False
        if self._is_asked:
            raise KeyboardInterrupt


class Looking:
    """One run over all sources.

    Args:
        predictor: Finds objects.
        scores: Score of each class above which a detection counts.
        wish: What is written, and how it is looked.
        out: Folder to write to.

    Raises:
        UserError: The size of slices cannot be told.
    """

    def __init__(self, predictor: Predictor, scores: Sequence[float], wish: Wish, out: Path) -> None:
        self._predictor, self._scores, self._wish = predictor, scores, wish
        self._side = (predictor.input_size[1], predictor.input_size[0]) if wish.side == (0, 0) else wish.side
        if self._side is not None and min(self._side) < 1:
            raise UserError('the size of the input is not known, so that of slices is not; give --slice N')
        self._sinks: list[Sink] = []
        self._screen = Screen() if wish.show else None
        self._stop = Stop()
        self.result = Detected(out)

    def at(self, found: Sequence[Media]) -> Detected:
        """Look at everything.

        Raises:
            UserError: Nothing could be read, or something cannot be written.
        """
        others = [media for media in found if media.kind != 'picture']
        if self._wish.draw and any(media.kind != 'address' for media in others):
            needed('av', 'a video')
        if self._wish.track:
            needed('trackers', 'tracking')
        make_folder(self.result.out)
        begun = time.monotonic()
        try:
            with self._stop:
                self._open_sinks()
                pictures = [media for media in found if media.kind == 'picture']
                self._look(self._read(pictures), len(pictures), 'pictures', self._wish.batch, enough)
                for media in others:
                    self._look_at(media)
        except (KeyboardInterrupt, WindowClosed):
            self.result.is_stopped = True
        finally:
            self.result.seconds = time.monotonic() - begun
            if self._screen is not None:
                self._screen.close()
            self._close_sinks()
        if not self.result.pictures + self.result.frames:
            raise UserError('nothing could be looked at: ' + (some(self.result.failures) or 'stopped before'))
        return self.result

    def _open_sinks(self) -> None:
        wish, out, classes = self._wish, self.result.out, self._predictor.classes
        self._sinks.append(Records(out / FILE, classes))
        if wish.draw:
            self._sinks.append(Drawings(out))
        if wish.txt:
            self._sinks.append(Labels(out / 'labels', classes))
        if wish.crops:
            self._sinks.append(Crops(out / 'crops'))

    def _close_sinks(self) -> None:
        """Write what is left to write, of each sink even if another fails; leave no folder where nothing was read."""
        if self.result.pictures + self.result.frames:
            with self._writing(), ExitStack() as stack:
                for sink in self._sinks:
                    stack.callback(sink.close)
        else:
            with suppress(OSError):
                self.result.out.rmdir()

    def _read(self, pictures: Iterable[Media]) -> Iterator[tuple[Media, Frame]]:
        """The pictures that can be read; the others are noted."""
        for media in pictures:
            try:
                yield media, Frame(read_picture(media.place))
            except UnreadableError as error:
                self.result.failures.append(f'{media.name}: {error}')

    def _look_at(self, media: Media) -> None:
        """Look at a video, a camera, or what is at an address."""
        try:
            pixels = fetch_picture(media.place) if media.kind == 'address' else None
            if pixels is not None:
                self._look(iter([(media, Frame(pixels))]), 1, media.name, 1, enough)
                return
            capture = Capture(media)
        except UnreadableError as error:
            self.result.failures.append(f'{media.name}: {error}')
            return
        wish, self.result.is_live = self._wish, capture.is_live
        follow = make_tracker(capture.fps / wish.every) if wish.track else enough
        with closing(capture):
            frames = ((media, frame) for frame in capture.frames(wish.every, wish.seconds))
            total = -(-min(capture.declared, int((wish.seconds or 1e9) * capture.fps)) // wish.every)
            try:
                self._look(frames, total, media.name, 1 if capture.is_live else wish.batch, follow)
            finally:
                with self._writing():
                    for sink in self._sinks:
                        sink.end_source()
        if capture.fault:
            self.result.failures.append(f'{media.name}: {capture.fault}')

    def _look(self, frames: Iterator[tuple[Media, Frame]], total: int, name: str, batch: int, follow: Follow) -> None:
        """Find the objects of frames, some at once, and give them to every sink."""
        with _progress(total, name) as update:
            while chunk := list(islice(frames, batch)):
                for (media, frame), sample in zip(chunk, self._find([frame for _, frame in chunk])):
                    found = sample.pred_instances
                    least = [self._scores[label] for label in found.labels.tolist()]
                    self._give(Seen(media, frame, follow(found, least, frame.time), self._predictor.classes,
                                    self._predictor.palette))
                update(len(chunk))

    def _find(self, frames: Sequence[Frame]) -> list[DetDataSample]:
        if self._side is None:
            return self._predictor([frame.pixels for frame in frames], len(frames))
        return [detect_in_slices(self._predictor, frame.pixels, self._side, self._wish.batch) for frame in frames]

    def _give(self, seen: Seen) -> None:
        if seen.frame.number is None:
            self.result.pictures += 1
        else:
            self.result.frames += 1
        self.result.objects.update(seen.classes[each.label] for each in seen.detections)
        with self._writing():
            for sink in self._sinks:
                sink.take(seen)
        if self._screen is not None:
            self._screen.show(seen)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All sinks take the same; what cannot be written is one line."""
        try:
            with self._stop.put_off():
                yield
        except OSError as error:
            raise UserError(f'cannot write to {self.result.out}: {error.strerror or error}') from error


def enough(found: InstanceData, least: Sequence[float], time: float) -> list[Detection]:
    """The detections above the score each needs, of a picture or of frames that nothing is followed in."""
    return [Detection(corners, label, score) for corners, label, score, needs in zip(
        found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist(), least) if score > needs]


@contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[[int], None]]:
    """How far it is and how long it still takes: a bar on a terminal, else a line now and then.

    Args:
        total: How many there are, 0 where nobody knows.
        name: What of.

    Yields:
        Takes how many are done.
    """
    said = time.monotonic()
    is_seen = sys.stderr.isatty()
    with open(os.devnull, 'w') as nowhere, tqdm(total=total or None, desc=name, leave=False, delay=DELAY,
                                                file=sys.stderr if is_seen else nowhere) as bar:

        def update(done: int) -> None:
            nonlocal said
            bar.update(done)
            if not is_seen and time.monotonic() - said > _EVERY and bar.n != total:
                said = time.monotonic()
                print(bar, file=sys.stderr)

        yield update
