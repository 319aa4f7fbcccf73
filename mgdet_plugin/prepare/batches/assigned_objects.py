"""What one sample teaches a head: its objects, the cells and anchors they are assigned to, the targets decoded.

Shapes: G objects, P positive cells.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mgdet_plugin.models.multigrid_assigner import MultiGridTargets
from mgdet_plugin.models.multigrid_bbox_coder import invert_xy
from mgdet_plugin.models.multigrid_head import MultiGridHead
from mgdet_plugin.models.truth import truth_in_input

_SURE = 40.0  # a logit whose probability is 1


@dataclass(frozen=True)
class AssignedObjects:
    """The objects of a sample in its input; of a head that is no ``MultiGridHead`` without what it is taught.

    Attributes:
        boxes: (G, 4) in pixels of the input.
        labels: (G,) classes.
        ignored: Boxes of regions that are neither object nor background, in pixels of the input.
        cells: (P, 4) the positive cells in pixels of the input.
        owner: (P,) which object each belongs to.
        anchors: (G, 4) the anchor of each object, on its centre.
        decoded: (P, 4) the boxes that the targets decode to.
        wrong: (P,) whether a cell's targets decode to another class.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    cells: Tensor
    owner: Tensor
    anchors: Tensor
    decoded: Tensor
    wrong: Tensor

    @property
    def errors(self) -> Tensor:
        """(P,) the farthest that a side of a cell's decoded box lies from its object's, in pixels of the input."""
        return (self.decoded - self.boxes[self.owner]).abs().amax(1)

    @property
    def without_cell(self) -> Tensor:
        """(G,) whether no cell is left to an object."""
        return torch.bincount(self.owner, minlength=len(self.boxes)) == 0


def assigned_objects(sample: DetDataSample, size: tuple[int, int], head: nn.Module) -> AssignedObjects:
    """Assign a sample's objects as the loss does, and decode the targets as predictions are decoded.

    Args:
        sample: A training sample.
        size: (H, W) of its input in pixels.
        head: The detector's head.
    """
    sample = truth_in_input(sample)
    objects = sample.gt_instances
    boxes = get_box_tensor(objects.bboxes).float().reshape(-1, 4)
    ignored = sample.get('ignored_instances')
    empty = torch.zeros(0, 4)
    regions = get_box_tensor(ignored.bboxes).float() if ignored is not None and 'bboxes' in ignored else empty
    if not isinstance(head, MultiGridHead):
        none = torch.zeros(0, dtype=torch.long)
        return AssignedObjects(boxes, objects.labels, regions, empty, none, empty, empty, none)
    whole = max(head.strides)  # the preprocessor pads to whole cells of the coarsest level
    map_sizes = [tuple(-(-side // whole) * whole // stride for side in size) for stride in head.strides]
    targets: MultiGridTargets = head.assigner.assign([InstanceData(bboxes=boxes, labels=objects.labels)], map_sizes)
    grid = targets.grid
    corner = torch.stack((grid.col, grid.row), 1)[targets.cell] * grid.stride[targets.cell][:, None]
    level, anchor = head.assigner.match_anchors(boxes)
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, head.assigner.anchors[level, anchor] / 2
    decoded, _, classes = head.decode(maps_of(targets, head))
    return AssignedObjects(
        boxes, objects.labels, regions, torch.cat((corner, corner + grid.stride[targets.cell][:, None]), 1).float(),
        targets.gt, torch.cat((centre - half, centre + half), 1), decoded[0, targets.cell],
        classes[0, targets.cell].argmax(-1) != targets.label)


def maps_of(targets: MultiGridTargets, head: MultiGridHead) -> list[Tensor]:
    """The raw maps (B, D, H_l, W_l) of a head that predicts exactly its targets: the inverse of ``head.decode``."""
    maps = []
    for level in targets.dense(head.num_classes):
        raw = level.clone()
        raw[..., :2] = invert_xy(level[..., :2], head.xy_scale)
        raw[..., 4:] = (2 * level[..., 4:] - 1) * _SURE  # objectness, anchor and class
        maps.append(raw.permute(0, 3, 1, 2))
    return maps
