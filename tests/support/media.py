"""Pictures, videos and a stream of solid squares, and a predictor that finds squares, so that each box is known."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mgdet_plugin.deploy.predictor import Predictor

CLASSES = ('red', 'green', 'blue')
PALETTE = [(250, 250, 0), (0, 250, 250), (250, 0, 250)]
Square = tuple[int, int, int, int]
"""Left, top, side, and place in CLASSES."""


def squares(*found: Square, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Pixels (H, W, 3) in BGR with squares on grey; size is (w, h)."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for left, top, side, label in found:
        pixels[top:top + side, left:left + side] = np.eye(3, dtype=np.uint8)[2 - label] * 250
    return pixels


def moving(count: int) -> list[np.ndarray]:
    """Frames in which a red square of 20 pixels moves right by 2 a frame, from (4, 10)."""
    return [squares((4 + 2 * index, 10, 20, 0)) for index in range(count)]


class SquareFinder:
    """A backend that finds solid squares of pure colours, wherever the codec leaves them.

    Args:
        smallest: Share of the picture's width below which a square is not seen.
        scores: Score of what is found on each picture after the other; 0.9 of others.
    """

    classes, palette, input_size, score_thr = CLASSES, PALETTE, (32, 32), 0.01

    def __init__(self, smallest: float = 0.0, scores: Sequence[float] = ()) -> None:
        self.smallest, self.scores, self.batches = smallest, list(scores), []

    def prepare(self, picture: np.ndarray) -> dict[str, Any]:
        return dict(inputs=picture)

    def lower(self, score_thr: float) -> None:
        raise AssertionError('0.01 is low enough')

    def __call__(self, packed: list[dict[str, Any]]) -> list[DetDataSample]:
        self.batches.append(len(packed))
        return [self._find(each['inputs'].astype(int)) for each in packed]

    def _find(self, pixels: np.ndarray) -> DetDataSample:
        score = self.scores.pop(0) if self.scores else 0.9
        boxes, labels = [], []
        for label in range(3):
            channel = pixels[..., 2 - label]
            mask = (channel - pixels.sum(-1) // 3 > 70).astype(np.uint8)
            for left, top, width, height, area in cv2.connectedComponentsWithStats(mask)[2][1:]:
                if area > 9 and width >= self.smallest * pixels.shape[1]:
                    boxes.append([left, top, left + width, top + height])
                    labels.append(label)
        return DetDataSample(pred_instances=InstanceData(
            bboxes=torch.tensor(boxes).float().reshape(-1, 4), labels=torch.tensor(labels).long(),
            scores=torch.full((len(boxes), ), score)))


def finder(**fields: Any) -> Predictor:
    """A predictor of squares."""
    return Predictor(SquareFinder(**fields))


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float = 10.0, codec: str = 'MJPG') -> Path:
    """A video by OpenCV."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


@contextmanager
def served(frames: Sequence[np.ndarray], pause: float = 0.05) -> Iterator[str]:
    """A server on this machine: /stream gives the frames as an MJPEG stream that then ends, /picture the first one."""

    class Handler(BaseHTTPRequestHandler):

        def do_GET(self) -> None:
            if not self.path.startswith(('/stream', '/picture')):
                self.send_error(404)
                return
            is_stream = self.path.startswith('/stream')
            self.send_response(200)
            self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=edge' if is_stream else 'image/png')
            self.end_headers()
            if not is_stream:
                self.wfile.write(cv2.imencode('.png', frames[0])[1].tobytes())
                return
            with suppress(OSError):  # nobody looks any longer
                for frame in frames:
                    content = cv2.imencode('.jpg', frame)[1].tobytes()
                    self.wfile.write(b'--edge\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n' % (
                        len(content), content))
                    time.sleep(pause)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
