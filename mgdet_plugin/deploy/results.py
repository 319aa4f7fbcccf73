"""What a predictor finds in the form of other libraries."""
from __future__ import annotations

from typing import TYPE_CHECKING

from mgdet_plugin.deploy.extra import needed

if TYPE_CHECKING:
    import supervision
    from mmdet.structures import DetDataSample


def to_supervision(sample: DetDataSample) -> supervision.Detections:
    """The detections of a sample for the ``supervision`` library: its annotators, trackers and sinks.

    Args:
        sample: What a predictor found on a picture.

    Returns:
        Boxes, scores, places and (in ``data['class_name']``) names of the classes.

    Raises:
        UserError: supervision is not installed.
    """
    import numpy as np
    library = needed('supervision', 'results for supervision')
    found = sample.pred_instances.numpy()
    labels = found.labels.astype(int)
    data = {'class_name': np.array(sample.classes)[labels]}
    return library.Detections(xyxy=found.bboxes.astype(np.float32), confidence=found.scores.astype(np.float32),
                              class_id=labels, data=data)
