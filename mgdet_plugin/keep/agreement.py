"""Held-out old images without labels: what the start weights see in them is the truth that a run is measured by."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.structures import InstanceData


def coco_of(pictures: Sequence[Mapping[str, Any]], found: Sequence[InstanceData], names: Sequence[str], sure: float,
            unsure: float) -> dict[str, Any]:
    """A COCO annotation file of detections.

    Args:
        pictures: Of each picture ``img_path``, ``height`` and ``width``.
        found: Detections of each, boxes in pixels of the picture.
        names: Of the classes.
        sure: Score from which a detection counts as an object.
        unsure: Score from which it is a region that is neither right nor wrong to find (``iscrowd``).
    """
    images = [dict(id=index, file_name=str(each['img_path']), height=int(each['height']), width=int(each['width']))
              for index, each in enumerate(pictures)]
    annotations: list[dict[str, Any]] = []
    for index, objects in enumerate(found):
        for box, score, label in zip(objects.bboxes.tolist(), objects.scores.tolist(), objects.labels.tolist()):
            x1, y1, x2, y2 = box
            if score < unsure or x2 - x1 < 1 or y2 - y1 < 1:
                continue
            annotations.append(dict(
                id=len(annotations) + 1, image_id=index, category_id=label + 1, bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1), iscrowd=int(score < sure), score=score))
    return dict(images=images, annotations=annotations,
                categories=[dict(id=index + 1, name=name) for index, name in enumerate(names)])
