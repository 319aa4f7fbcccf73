"""temporary; replaced by the branch oldpics."""
from __future__ import annotations
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
import cv2
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset

@DATASETS.register_module()
class OldImages(BaseDataset):
    def __init__(self, images, pipeline=(), **kwargs):
        self.images = images
        super().__init__(pipeline=list(pipeline), serialize_data=False, **kwargs)
    def load_data_list(self):
        paths = sorted(str(p) for p in Path(self.images).rglob('*') if p.suffix.lower() in ('.jpg', '.png')) if isinstance(self.images, str) else self.images
        out = []
        for i, p in enumerate(paths):
            h, w = cv2.imread(p).shape[:2]
            out.append(dict(img_path=p, img_id=i, height=h, width=w, instances=[]))
        return out

def old_pipeline(p):
    return [s for s in p if s['type'] != 'FilterAnnotations']

def plain_pipeline(p):
    return [s for s in p if s['type'] not in ('LoadAnnotations', 'DropDegenerateBoxes')]
