"""Pictures and videos with what was found drawn on them, in files and on the screen."""
from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.media.seen import Seen, Sink

_TICKS = 1000  # of a second, in the times of a video's frames
_KEYS = (27, ord('q'))  # Esc
_WAIT = 50  # milliseconds between two looks at whether Ctrl-C was pressed


class Drawings(Sink):
    """Writes each picture drawn on, by its name, and of each other source a video.

    Args:
        out: Folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._video: VideoFile | None = None

    def take(self, seen: Seen) -> None:
        """Write a picture, or a frame of the video of its source."""
        if seen.frame.number is None:
            path = self._out / seen.media.name
            if path.suffix.lower() not in Image.registered_extensions():  # of an address
                path = path.with_name(f'{path.name}.png')
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = Image.registered_extensions()[path.suffix.lower()]
            write_together({path: lambda stream: seen.drawn.save(stream, format=kind, quality=95)})
            return
        if self._video is None:
            path = self._out / f'{seen.media.stem}.mp4'
            path.parent.mkdir(parents=True, exist_ok=True)
            self._video = VideoFile(path, seen.drawn.size)
        self._video.add(np.asarray(seen.drawn), seen.frame.time)

    def end_source(self) -> None:
        """Finish the video."""
        video, self._video = self._video, None
        if video is not None:
            video.close()


class VideoFile:
    """A video (H.264 in MP4) that takes its name when it is whole.

    Args:
        path: MP4 to write.
        size: (width, height) in pixels, of which an odd one loses its last pixel.

    Raises:
        UserError: It cannot be written, or PyAV is not installed.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._library = needed('av', 'a video')
        self._path, self._size = path, (size[0] // 2 * 2, size[1] // 2 * 2)
        self._temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        self._last, self._step = -1, _TICKS // 25  # of a video of one frame
        try:
            self._container = self._library.open(str(self._temporary), 'w', format='mp4')
            self._stream = self._container.add_stream('h264', options=dict(preset='veryfast'))
        except (OSError, ValueError) as error:
            raise self._unwritten(error) from error
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = 'yuv420p'
        self._stream.codec_context.time_base = Fraction(1, _TICKS)

    def add(self, pixels: np.ndarray, time: float) -> None:
        """Write a frame.

        Args:
            pixels: (H, W, 3) uint8 in RGB; of another size than the first (a stream may change it), it is resized.
            time: Seconds from the beginning.

        Raises:
            UserError: The disk is full.
        """
        width, height = self._size
        if pixels.shape[0] // 2 * 2 != height or pixels.shape[1] // 2 * 2 != width:
            pixels = cv2.resize(pixels, self._size)
        frame = self._library.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format='rgb24')
        before, self._last = self._last, max(self._last + 1, round(time * _TICKS))
        self._step = self._last - before if before >= 0 else self._step
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._encode(frame)

    def close(self) -> None:
        """Give the file its name.

        Raises:
            UserError: The disk is full.
        """
        self._encode(None)
        try:
            self._container.close()
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise self._unwritten(error) from error

    def _encode(self, frame: Any) -> None:
        try:
            packets = self._stream.encode(frame)
            if frame is None:  # the others last until the next; without this the last one lasts no time
                for packet in packets:
                    packet.duration = self._step
            self._container.mux(packets)
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> UserError:
        self._temporary.unlink(missing_ok=True)
        return UserError(f'cannot write {self._path}: {getattr(error, "strerror", None) or error}')


class WindowClosed(Exception):
    """A person has seen enough."""


class Screen:
    """Shows what is found in a window: of pictures each until a key is pressed, of others as they come."""

    def __init__(self) -> None:
        # OpenCV points its windows to fonts it has none of, of which they complain.
        os.environ['QT_QPA_FONTDIR'] = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf'))

    def show(self, seen: Seen) -> None:
        """Show one; Ctrl-C is heard meanwhile.

        Raises:
            WindowClosed: Esc or q was pressed, or the window closed.
            UserError: OpenCV has no windows.
        """
        try:
            cv2.imshow('mgdet', np.asarray(seen.drawn)[..., ::-1])
            key = cv2.waitKey(1)
            while (is_open := cv2.getWindowProperty('mgdet', cv2.WND_PROP_VISIBLE) >= 1) and (
                    key < 0 and seen.frame.number is None):
                key = cv2.waitKey(_WAIT)
        except cv2.error as error:
            raise UserError('this OpenCV has no windows (opencv-python-headless); leave --show out') from error
        if not is_open or (key >= 0 and key & 0xff in _KEYS):
            raise WindowClosed

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()
