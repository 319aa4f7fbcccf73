"""The dense head of MultiGridDet.

Shapes: B images, L levels, H x W cells of a level, N cells over all levels, A anchors, C classes, D = 5 + A + C.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptInstanceList, OptMultiConfig
from mmengine.model import bias_init_with_prob, kaiming_init, normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require
from mgdet_plugin.models.maths.grid import flatten_maps
from mgdet_plugin.models.maths.letterbox import placement, unletterbox_boxes
from mgdet_plugin.models.maths.suppression import NMSOptions, suppress
from mgdet_plugin.models.multigrid_bbox_coder import activate_xy, split_fields
from mgdet_plugin.models.multigrid_loss import MultiGridPredictions

OBJECTNESS_PRIOR = 0.01
BRIDGE_FACTORS = (8, 4, 2)
TEST_CFG = dict(score_thr=0.1, nms_pre=1000, max_per_img=500, multi_label=False,
                nms=dict(type='diou', iou_threshold=0.45))


class BridgedMaps(tuple[Tensor, ...]):
    """Maps (B, bridge_channels[l], H_l, W_l) that have been through a head's bridges."""


@MODELS.register_module()
class MultiGridHead(BaseDenseHead):
    """Head in which each object is predicted by the 3x3 block of cells around its centre.

    Per level a 3x3 bridge convolution and a 1x1 prediction with channels ``[tx, ty, tw, th, objectness,
    A anchor logits, C class logits]`` of every cell.

    Args:
        num_classes: C.
        in_channels: Channels of the neck's maps, coarse (stride 32) first.
        anchors: Per level, coarse first, (width, height) of each anchor in pixels, the same at every input size.
        strides: Stride of each level in pixels, coarse first.
        bridge_channels: Channels of the bridge convolutions. Default: 8, 4 and 2 times D. They come from the class
            count the weights were *trained* with: keep (704, 352, 176) when fine-tuning model5.
        xy_scale: The s of ``tanh(s t) + sigmoid(s t)``.
        assigner: Config of the assigner; anchors and strides are handed to it.
        bbox_coder: Config of the coder; anchors, strides, xy_scale and the loss's use_softmax are handed to it.
        loss: Config of the loss.
        conv_cfg: Config of the bridge convolutions.
        norm_cfg: Config of their normalisation.
        act_cfg: Config of their activation.
        train_cfg: Not used; mmdet's detectors pass it.
        test_cfg: ``score_thr`` (0.1), ``nms_pre`` (best boxes that enter suppression, 1000; -1 for all),
            ``max_per_img`` (500), ``multi_label`` (False; True: a candidate for each class of a cell, for suppression
            with ``class_agnostic=False``) and ``nms`` (see :class:`NMSOptions`).
        init_cfg: Config of the initialisation.

    Raises:
        UserError: If the per-level lists differ in length, num_classes is not positive, test_cfg is off or the coder's
            ``anchor_use`` is 'expected' without a loss on boxes.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: Sequence[int],
                 anchors: Sequence[Sequence[Sequence[float]]],
                 strides: Sequence[int],
                 bridge_channels: Sequence[int] | None = None,
                 xy_scale: float = 0.15,
                 assigner: ConfigType = dict(type='MultiGridAssigner'),
                 bbox_coder: ConfigType = dict(type='MultiGridBBoxCoder'),
                 loss: ConfigType = dict(type='MultiGridLoss'),
                 conv_cfg: OptConfigType = None,
                 norm_cfg: ConfigType = dict(type='BN', eps=1e-3, momentum=0.01),
                 act_cfg: ConfigType = dict(type='LeakyReLU', negative_slope=0.1),
                 train_cfg: OptConfigType = None,
                 test_cfg: OptConfigType = None,
                 init_cfg: OptMultiConfig = None) -> None:
        super().__init__(init_cfg)
        if num_classes < 1:
            raise UserError(f'num_classes must be at least 1, got {num_classes}')
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.xy_scale = xy_scale
        self.train_cfg = train_cfg
        self.test_cfg = dict(TEST_CFG, **(test_cfg or {}))
        self.nms_options(self.test_cfg)
        self.loss_module = MODELS.build(loss)
        grid = dict(anchors=anchors, strides=strides)
        self.assigner = TASK_UTILS.build(assigner, default_args=grid)
        self.bbox_coder = TASK_UTILS.build(
            bbox_coder, default_args=dict(grid, xy_scale=xy_scale, use_softmax=self.loss_module.use_softmax))
        if self.bbox_coder.anchor_use == 'expected' and self.loss_module.iou_loss is None:
            raise UserError("anchor_use='expected' needs a loss on boxes, got iou_loss=None: with squared errors sizes "
                            "are relative to one anchor; set loss.iou_loss=dict(type='DIoULoss', loss_weight=1.0)")
        self.num_anchors = self.bbox_coder.num_anchors
        bridges = tuple(bridge_channels or [factor * self.num_channels for factor in BRIDGE_FACTORS])
        if not len(in_channels) == len(bridges) == len(strides) == len(anchors):
            raise UserError('in_channels, bridge_channels, strides and anchors must have one entry a level, got '
                            f'{len(in_channels)}, {len(bridges)}, {len(strides)} and {len(anchors)}')
        self.bridge_channels = bridges
        cfg = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.bridges = nn.ModuleList(
            ConvModule(inner, bridge, 3, padding=1, **cfg) for inner, bridge in zip(in_channels, bridges))
        self.predict_convs = nn.ModuleList(nn.Conv2d(bridge, self.num_channels, 1) for bridge in bridges)

    @property
    def num_channels(self) -> int:
        """D, channels of a prediction map."""
        return 5 + self.num_anchors + self.num_classes

    def init_weights(self) -> None:
        """Small random predictions that start from 'no object' (prior 0.01, as in "Focal Loss", section 4.1)."""
        super().init_weights()
        for bridge in self.bridges:
            kaiming_init(bridge.conv, a=0.1, nonlinearity='leaky_relu')
        for conv in self.predict_convs:
            normal_init(conv, std=0.01)
            nn.init.constant_(conv.get_parameter('bias')[4], bias_init_with_prob(OBJECTNESS_PRIOR))

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        """Refuse weights of another number of classes or anchors, which some loaders leave out in silence."""
        for level, conv in enumerate(self.predict_convs):
            given = state_dict.get(f'{prefix}predict_convs.{level}.weight')
            if given is not None and given.shape[0] != conv.out_channels:
                raise UserError(f'the weights predict {given.shape[0]} channels a cell, the config {conv.out_channels} '
                                f'(5 + {self.num_anchors} anchors + {self.num_classes} classes): give the config they '
                                'were trained with, or import them for your classes')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps (B, in_channels[l], H_l, W_l) of the neck -> raw maps (B, D, H_l, W_l), coarse to fine."""
        return tuple(conv(feat) for conv, feat in zip(self.predict_convs, self.bridged(x)))

    def bridged(self, x: tuple[Tensor, ...]) -> BridgedMaps:
        """Maps (B, in_channels[l], H_l, W_l) of the neck through the bridges; those that have been are left."""
        return x if isinstance(x, BridgedMaps) else BridgedMaps(
            bridge(feat) for bridge, feat in zip(self.bridges, x))

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Decode raw maps (B, D, H_l, W_l), coarse to fine.

        Returns:
            boxes (B, N, 4) as (x1, y1, x2, y2) in input pixels, not clipped; scores (B, N); class probabilities
            (B, N, C). N runs over levels coarse to fine, rows, columns.
        """
        return self.bbox_coder.decode(maps)

    # mmdet unpacks what forward returns into arguments; these three keep the maps one argument.
    def loss(self, x: tuple[Tensor, ...], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of neck maps; see :meth:`loss_by_feat`."""
        gt, gt_ignore, metas = unpack_gt_instances(batch_data_samples)
        return self.loss_by_feat(self(x), gt, metas, gt_ignore)

    def predict(self, x: tuple[Tensor, ...], batch_data_samples: SampleList, rescale: bool = False) -> InstanceList:
        """Detections of neck maps; see :meth:`predict_by_feat`."""
        metas = [sample.metainfo for sample in batch_data_samples]
        return self.predict_by_feat(self(x), metas, rescale=rescale)

    def loss_and_predict(self, x: tuple[Tensor, ...], batch_data_samples: SampleList,
                         proposal_cfg: OptConfigType = None) -> tuple[dict[str, Tensor], InstanceList]:
        """Losses and detections (in input pixels) of one forward pass."""
        gt, gt_ignore, metas = unpack_gt_instances(batch_data_samples)
        maps = self(x)
        return self.loss_by_feat(maps, gt, metas, gt_ignore), self.predict_by_feat(maps, metas, cfg=proposal_cfg)

    def loss_by_feat(self, maps: Sequence[Tensor], batch_gt_instances: InstanceList, batch_img_metas: list[dict],
                     batch_gt_instances_ignore: OptInstanceList = None) -> dict[str, Tensor]:
        """Losses of raw maps.

        Args:
            maps: (B, D, H_l, W_l) of each level, coarse to fine.
            batch_gt_instances: Per image ``bboxes`` (G, 4) in input pixels and ``labels`` (G,).
            batch_img_metas: Metas of the images; not needed.
            batch_gt_instances_ignore: Per image ``bboxes`` of regions that are neither object nor background: cells
                that predict them are ignored like those that predict an object.

        Returns:
            ``loss_coord``, ``loss_obj``, ``loss_anchor``, ``loss_cls`` (+ options), already scaled; their sum is the
            total.
        """
        cells, grid = flatten_maps(maps), self.bbox_coder.grid(maps)
        targets = self.assigner.assign(batch_gt_instances, grid.map_sizes, grid)
        with torch.no_grad():
            boxes = self.bbox_coder.decode_cells(cells, grid)
        positive = cells[targets.image, targets.cell]  # (P, D)
        raw, level = positive[:, :4], grid.level[targets.cell]
        if self.bbox_coder.anchor_use == 'expected':
            sizes = self.bbox_coder.expected_sizes(split_fields(positive, self.num_anchors).anchor, level)
        else:
            sizes = self.bbox_coder.anchors.to(cells)[level, targets.anchor]
        place = (grid.col[targets.cell], grid.row[targets.cell], grid.stride[targets.cell])
        pred = MultiGridPredictions(split_fields(cells, self.num_anchors).objectness, positive, boxes,
                                    self.bbox_coder.decode_boxes(raw, sizes, *place),
                                    activate_xy(raw[:, :2], self.bbox_coder.xy_scale),
                                    spared_objects(batch_gt_instances, batch_gt_instances_ignore))
        return self.loss_module(pred, targets)

    def predict_by_feat(self, maps: Sequence[Tensor], batch_img_metas: list[dict] | None = None,
                        cfg: OptConfigType = None, rescale: bool = False, with_nms: bool = True) -> InstanceList:
        """Detections of raw maps.

        Args:
            maps: (B, D, H_l, W_l) of each level, coarse to fine.
            batch_img_metas: ``img_shape`` of each image; with rescale what :func:`placement` needs.
            cfg: In place of test_cfg.
            rescale: Boxes in pixels of the original image, the letterbox undone.
            with_nms: Suppress duplicates; boxes are clipped to the image either way, after suppression.

        Returns:
            Per image ``bboxes`` (M, 4), ``scores`` (M,) and ``labels`` (M,), by falling score.
        """
        settings = self.test_cfg if cfg is None else dict(TEST_CFG, **cfg)
        metas = batch_img_metas or [dict(img_shape=(maps[0].shape[2] * self.strides[0],
                                                    maps[0].shape[3] * self.strides[0]))] * len(maps[0])
        return self.predict_decoded(self.decode(maps), metas, settings, rescale, with_nms)

    @classmethod
    def predict_decoded(cls, decoded: tuple[Tensor, Tensor, Tensor], metas: list[dict], settings: dict[str, Any],
                        rescale: bool = False, with_nms: bool = True) -> InstanceList:
        """Detections of decoded cells, see :meth:`decode`; ``settings`` is a whole test_cfg."""
        boxes, scores, class_probs = decoded
        labels = class_probs.argmax(-1)
        if settings['multi_label']:
            boxes, scores, labels = spread_classes(boxes, scores, class_probs)
        return [cls._predict_image(*fields, settings, rescale, with_nms)
                for fields in zip(boxes, scores, labels, metas)]

    @classmethod
    def _predict_image(cls, boxes: Tensor, scores: Tensor, labels: Tensor, meta: dict, settings: dict[str, Any],
                       rescale: bool, with_nms: bool) -> InstanceData:
        index = (scores > settings['score_thr']).nonzero().squeeze(1)
        index = index[scores[index].argsort(descending=True, stable=True)]
        if settings['nms_pre'] > 0:
            index = index[:settings['nms_pre']]
        boxes, scores, labels = boxes[index], scores[index], labels[index]
        if with_nms:
            left = suppress(boxes, scores, labels, cls.nms_options(settings), settings['score_thr'],
                            settings['max_per_img'])
            boxes, scores, labels = left.boxes, left.scores, labels[left.indices]
        boxes, scores, labels = (field[:settings['max_per_img']] for field in (boxes, scores, labels))
        return InstanceData(bboxes=in_picture(boxes, meta, rescale), scores=scores, labels=labels)

    @staticmethod
    def nms_options(settings: dict[str, Any]) -> NMSOptions:
        """The suppression options of a test_cfg.

        Raises:
            UserError: If one is unknown, out of its range or against ``multi_label``, or a number beside them is none.
        """
        require(is_number(settings['score_thr']), 'test_cfg.score_thr must be a number', settings['score_thr'])
        for key, least in (('nms_pre', -1), ('max_per_img', 1)):
            require(is_whole(settings[key], least), f'test_cfg.{key} must be a whole number from {least}',
                    settings[key])
        options = dict(settings['nms'])
        unknown = set(options) - set(NMSOptions._fields)
        if unknown:
            raise UserError(f'test_cfg.nms has no {sorted(unknown)}; it takes {NMSOptions._fields}')
        found = NMSOptions(**options).checked()
        if settings.get('multi_label') and found.class_agnostic:
            raise UserError('test_cfg.multi_label=True needs nms.class_agnostic=False, got True: the classes of a cell '
                            'have one box, so all but the best would be suppressed')
        return found


def in_picture(boxes: Tensor, meta: dict, rescale: bool) -> Tensor:
    """Boxes (M, 4) in input pixels clipped to the input; with ``rescale`` in pixels of the original, clipped to it."""
    shape = meta['img_shape']
    if rescale:
        boxes = unletterbox_boxes(boxes, *placement(meta))
        shape = meta['ori_shape']
    limit = boxes.new_tensor([shape[1], shape[0], shape[1], shape[0]])
    return boxes.clamp(min=0).minimum(limit)


def spread_classes(boxes: Tensor, scores: Tensor, class_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A candidate for each class of each cell; that of the most likely class keeps the cell's score.

    From boxes (B, N, 4), scores (B, N) and class probabilities (B, N, C) to boxes (B, N * C, 4), scores (B, N * C) in
    proportion to these and labels (B, N * C).
    """
    num_classes = class_probs.shape[-1]
    shares = class_probs / class_probs.amax(-1, keepdim=True).clamp(min=torch.finfo(class_probs.dtype).tiny)
    labels = torch.arange(num_classes, device=boxes.device).expand_as(class_probs)
    return boxes.repeat_interleave(num_classes, 1), (scores[..., None] * shares).flatten(1), labels.flatten(1)


def spared_objects(objects: InstanceList, ignored: OptInstanceList = None) -> Tensor:
    """Boxes of the objects and ignored regions of each image, (B, G, 4), padded with empty boxes."""
    per_image = [get_box_tensor(instances.bboxes) for instances in objects]
    if ignored is not None:
        # mmdet gives None for an image without ignored regions
        per_image = [torch.cat((boxes, get_box_tensor(extra.bboxes))) if extra is not None and len(extra) else boxes
                     for boxes, extra in zip(per_image, ignored)]
    padded = pad_sequence([boxes.float().reshape(-1, 4) for boxes in per_image], batch_first=True)
    return padded.nan_to_num(0.0, 0.0, 0.0)
