"""The same object from frame to frame, by ByteTrack (Zhang et al., ECCV 2022), in the ``trackers`` library."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mmengine.structures import InstanceData

from mgdet_plugin.deploy.extra import needed
from mgdet_plugin.deploy.media.seen import Detection

_LOST = 1.0  # seconds a track outlives its last detection


def make_tracker(fps: float) -> Callable[[InstanceData, Sequence[float], float], list[Detection]]:
    """A function that numbers the objects of one source after the other frame.

    Args:
        fps: Frames a second.

    Returns:
        (detections of a frame, the score each needs, seconds of the frame) -> those that reach it or go on with a
        track, best first; one that is seen for the first time has no number yet.

    Raises:
        UserError: A library is not installed.
    """
    library = needed('trackers', 'tracking')
    supervision = needed('supervision', 'tracking')
    tracker = library.ByteTrackTracker(
        lost_track_buffer=round(30 * _LOST), frame_rate=fps, track_activation_threshold=1.0,
        high_conf_det_threshold=1.0)  # scores are given as shares of what they need

    def follow(found: InstanceData, needed_scores: Sequence[float], time: float) -> list[Detection]:
        scores = found.scores.numpy()
        enough = np.maximum(np.asarray(needed_scores), 1e-6)
        tracked = tracker.update(supervision.Detections(
            xyxy=found.bboxes.numpy().astype(float), confidence=scores / enough, class_id=found.labels.numpy(),
            data=dict(place=np.arange(len(scores)))), timestamp=time)
        tracks = {int(place): int(track) for place, track in zip(tracked.data.get('place', ()), tracked.tracker_id)}
        return [Detection(corners, label, score, tracks[place] if tracks.get(place, -1) >= 0 else None)
                for place, (corners, label, score) in enumerate(zip(
                    found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist()))
                if score > enough[place] or tracks.get(place, -1) >= 0]

    return follow
