"""Pixels of sources: a picture at a time, and the frames of videos, cameras and streams. Arrays are BGR."""
from __future__ import annotations

import os
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from queue import Empty, Queue
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS, declared_sizes_unbounded
from mgdet_plugin.datasets.formats.pictures import loaded
from mgdet_plugin.deploy.media.find_media import Media

FPS = 25.0  # of a source that does not say it
_TIMEOUT = 10  # seconds without an answer after which a camera or an address is given up
_MOMENT = 0.1  # seconds
_MOST_BYTES = 2 ** 28  # of a picture that is fetched
_CLOSED = dict(camera='there is no such camera, or it is in use',
               address='nothing answers that is a picture or a stream',
               video='no video that can be opened (empty, cut short or of an unknown form)')
_WHOLE = 0.98  # share of the frames and of the time a video declares, below both of which it was cut


class UnreadableError(UserError):
    """Of a source: what the line of an error says after the source's name."""


class Frame(NamedTuple):
    """Pixels (H, W, 3) uint8 in BGR, and of a video the number of the frame from 0 and its time in seconds."""

    pixels: np.ndarray
    number: int | None = None
    time: float = 0.0


def read_picture(path: str) -> np.ndarray:
    """A picture file as training reads it, its orientation applied.

    Raises:
        UnreadableError: It cannot be read; the line says why.
    """
    with declared_sizes_unbounded():
        sample = loaded(path, LoadImageFromFile())
    if isinstance(sample, str):
        raise UnreadableError(f'cannot be read ({sample})')
    pixels: np.ndarray = sample['img']
    return pixels


def fetch_picture(address: str) -> np.ndarray | None:
    """The picture at an address; None where there is a stream or a video.

    Raises:
        UnreadableError: Nothing is there, or a picture that cannot be read.
    """
    if not address.startswith(('http://', 'https://')):
        return None
    try:
        with urlopen(_request(address), timeout=_TIMEOUT) as answer:
            if not answer.headers.get_content_type().startswith('image/'):
                return None
            content = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise UnreadableError(f'cannot be fetched ({getattr(error, "reason", error)})') from None
    pixels = None
    with suppress(*DECODER_ERRORS):
        pixels = mmcv.imfrombytes(content)
    if pixels is None or len(content) > _MOST_BYTES:
        raise UnreadableError(f'cannot be read (of {len(content):,} bytes the decoder returns nothing)')
    return pixels


def _request(address: str) -> Request:
    """The request of an address, whose user and password, if any, go into its header."""
    parts = urlsplit(address)
    found = Request(urlunsplit(parts._replace(netloc=parts.netloc.rpartition('@')[2])), headers={'User-Agent': 'mgdet'})
    if parts.username:
        word = f'{unquote(parts.username)}:{unquote(parts.password or "")}'
        found.add_header('Authorization', f'Basic {b64encode(word.encode()).decode()}')
    return found


class Capture:
    """An opened video, camera or stream.

    A live one gives its newest frame whenever it is asked, so what takes longer than a frame falls not behind but
    leaves frames out.

    Args:
        media: The source.

    Attributes:
        fps: Frames a second by what the source says.
        declared: Frames a video says it has, 0 where it does not.
        is_live: Whether frames come whether asked for or not.
        fault: How the source broke off, once its frames have ended.

    Raises:
        UnreadableError: It cannot be opened.
    """

    def __init__(self, media: Media) -> None:
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # what both have to say is said in our line
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        if media.kind == 'camera':
            self._capture = cv2.VideoCapture(int(media.place))
        else:
            self._capture = cv2.VideoCapture(media.place, cv2.CAP_FFMPEG, [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * _TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * _TIMEOUT])
        if not self._capture.isOpened():
            raise UnreadableError(_CLOSED[media.kind])
        said = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = said if 0 < said <= 1000 else FPS
        self.declared = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.is_live = media.kind == 'camera' or (media.kind == 'address' and not self.declared)
        self.fault = ''
        self._enough = Event()
        self._reader: Thread | None = None
        self._read, self._time = 0, -1 / self.fps

    def frames(self, every: int = 1, seconds: float | None = None) -> Iterator[Frame]:
        """The frames from here on.

        Args:
            every: Of so many frames one is given.
            seconds: After which no more are given.
        """
        for frame in self._newest(every) if self.is_live else self._in_order(every):
            if seconds is not None and frame.time >= seconds:
                return
            yield frame
        if self.is_live:
            self.fault = f'ended after {self._read:,} frames'
        elif self._read < _WHOLE * self.declared and self._time < _WHOLE * self.declared / self.fps:
            self.fault = f'broke off after {self._read:,} of {self.declared:,} frames'

    def _in_order(self, every: int) -> Iterator[Frame]:
        while self._capture.grab():
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self._time = stamp if stamp > self._time else self._time + 1 / self.fps  # raw streams have no stamps
            if self._read % every == 0:
                is_whole, pixels = self._capture.retrieve()
                if not is_whole:
                    return
                yield Frame(pixels, self._read, self._time)
            self._read += 1

    def _newest(self, every: int) -> Iterator[Frame]:
        held: Queue[Frame] = Queue(1)

        def read() -> None:
            begun = None
            while not self._enough.is_set() and self._capture.grab():
                now = time.monotonic()
                begun = begun or now
                if self._read % every == 0:
                    is_whole, pixels = self._capture.retrieve()
                    if not is_whole:
                        break
                    with suppress(Empty):
                        held.get_nowait()
                    held.put(Frame(pixels, self._read, now - begun))
                self._read += 1

        self._reader = Thread(target=read, daemon=True)
        self._reader.start()
        is_over = False
        while not is_over:
            is_over = not self._reader.is_alive()  # asked first: what it left before it ended is still taken
            with suppress(Empty):
                yield held.get(timeout=_MOMENT)

    def close(self) -> None:
        """Let go of the source, never while it is read from, which would end the process."""
        self._enough.set()
        if self._reader is not None:
            self._reader.join(2 * _TIMEOUT)
            if self._reader.is_alive():
                return
        self._capture.release()
