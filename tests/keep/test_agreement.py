"""Detections as the truth a run is measured by."""
import torch
from mmengine.structures import InstanceData

from mgdet_plugin.keep.agreement import coco_of


def test_detections_as_annotations():
    """Sure ones are objects, unsure ones crowds; what is less sure or thinner than a pixel is left out."""
    boxes = [[1, 2, 11, 22], [0, 0, 5, 4], [3, 3, 4, 4], [0, 0, 9, 9], [0, 0, 0.5, 9], [0, 5, 9, 5.5], [0, 0, 2, 3]]
    scores = [0.5, 0.25, 0.75, 0.125, 0.75, 0.75, 1.0]
    found = InstanceData(bboxes=torch.tensor(boxes), scores=torch.tensor(scores),
                         labels=torch.tensor([0, 1, 1, 0, 0, 0, 0]))
    nothing = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0).long())
    pictures = [dict(img_path='a.png', height=40.0, width=60), dict(img_path='b.png', height=10, width=20, more=1)]
    first = [dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 10, 20], area=200, iscrowd=0, score=0.5),
             dict(id=2, image_id=1, category_id=2, bbox=[0, 0, 5, 4], area=20, iscrowd=1, score=0.25),
             dict(id=3, image_id=1, category_id=2, bbox=[3, 3, 1, 1], area=1, iscrowd=0, score=0.75),
             dict(id=4, image_id=1, category_id=1, bbox=[0, 0, 2, 3], area=6, iscrowd=0, score=1.0)]
    assert coco_of(pictures, [nothing, found], ['cat', 'dog'], 0.5, 0.25) == dict(
        images=[dict(id=0, file_name='a.png', height=40, width=60), dict(id=1, file_name='b.png', height=10, width=20)],
        annotations=first, categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
