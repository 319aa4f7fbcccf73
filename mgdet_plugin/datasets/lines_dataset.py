"""The TensorFlow project's annotation lines as a dataset, where they are not to become a COCO file first."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import checked_names
from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.formats.picture_files import picture_size
from mgdet_plugin.datasets.sources.lines import read_sets
from mgdet_plugin.datasets.transforms.drop_degenerate_boxes import degenerate_reason


@DATASETS.register_module()
class LinesDataset(BaseDetDataset):
    """Pictures and boxes of lines ``path x1,y1,x2,y2,class x1,y1,x2,y2,class ...``.

    Pictures are looked for where the lines say, seen from ``data_prefix.img`` (where it is given), from the file's
    folder and from the working folder, then by name anywhere below the first of them. Boxes that cannot be objects are
    left out, as ``CocoDataset`` does. ``filter_cfg=dict(filter_empty_gt=True)`` leaves pictures without objects out of
    training.

    ``CocoMetric`` without ``ann_file`` measures on it where ``'instances'`` is among ``meta_keys`` of the pipeline's
    ``PackDetInputs``.

    Args:
        ann_file: The file of lines.
        metainfo: ``classes``, in the order that the lines number them.
        data_prefix: ``img``: folder of the pictures. Default: where they are found.
        kwargs: Those of mmdet's ``BaseDetDataset``.

    Raises:
        UserError: No class names, a picture that is not there, or a line that cannot be read.
    """

    places_pictures = True  # below the same folders, and that of the lines

    def __init__(self, *args: Any, data_prefix: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, data_prefix=dict(data_prefix or {}), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Image and instances of every line, in mmdet's form."""
        path, images = Path(self.ann_file), self.data_prefix.get('img')
        if not path.is_file():
            raise UserError(f'LinesDataset: ann_file {path} is not there; give the file of annotation lines')
        if not self.metainfo.get('classes'):
            raise UserError('LinesDataset: lines number the classes, and metainfo names none; set '
                            'metainfo=dict(classes=(...)) in the order of their numbers')
        classes = checked_names(self.metainfo['classes'], 'LinesDataset: metainfo.classes')
        annotated = read_sets(dict(all=path), classes, Path(images) if images else None)
        if annotated.missing:
            raise UserError(f'LinesDataset: {path} names {len(annotated.missing):,} pictures that are not there '
                            f'({some(annotated.missing, 3)}); give their folder by data_prefix=dict(img=...)')
        labels = {name: label for label, name in enumerate(classes)}
        found = []
        for number, each in enumerate(annotated.pictures):
            width, height = picture_size(str(each.path))
            boxes = [(x, y, x + w, y + h, labels[box.name]) for box in each.boxes for x, y, w, h in [box.bbox]]
            instances = [dict(bbox=list(map(float, box[:4])), bbox_label=box[4], ignore_flag=0) for box in boxes
                         if degenerate_reason(box[:4], (width, height)) is None]
            found.append(dict(img_path=str(each.path), img_id=number, width=width, height=height,
                              instances=instances))
        return found

    def filter_data(self) -> list[dict[str, Any]]:
        """What is trained on: all, or pictures with objects where ``filter_cfg`` says so."""
        if self.test_mode or not (self.filter_cfg or {}).get('filter_empty_gt', False):
            return list(self.data_list)
        return [each for each in self.data_list if each['instances']]
