"""The head: maps, detections against the reference, metas, and what it refuses."""
import math

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.runner.checkpoint import load_state_dict

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.multigrid_head import spared_objects
from tests.conftest import objects

LETTERBOX_META = dict(img_shape=(320, 320), ori_shape=(480, 640), scale_factor=(0.5, 0.5),
                      pad_param=np.array([40, 40, 0, 0], dtype=np.float32))


@pytest.mark.parametrize('image', [1, 2])
def test_golden_diou_suppression(make_head, golden, golden_maps, image):
    maps = [level[image:image + 1] for level in golden_maps]
    found, = make_head().predict_by_feat(maps, [LETTERBOX_META], rescale=True)
    expected = torch.from_numpy(golden[f'nms_diou_iou_img{image}_boxes']).float()  # rounded by the reference
    assert found.labels.tolist() == golden[f'nms_diou_iou_img{image}_labels'].tolist()
    assert (found.bboxes - expected).abs().max() <= 1.0
    np.testing.assert_allclose(found.scores, golden[f'nms_diou_iou_img{image}_scores'], atol=1e-5)


def test_forward_gives_the_maps_themselves(make_head):
    feats = tuple(torch.randn(2, 8, size, size) for size in (2, 4, 8))
    maps = make_head(num_classes=7)(feats)
    assert isinstance(maps, tuple)
    assert [tuple(level.shape) for level in maps] == [(2, 15, 2, 2), (2, 15, 4, 4), (2, 15, 8, 8)]


def test_weights_of_other_classes_are_refused_by_every_loader(make_head):
    weights = make_head(num_classes=9).state_dict()
    with pytest.raises(UserError, match=r'predict 17 channels a cell, the config 15 \(5 \+ 3 anchors \+ 7 classes\)'):
        load_state_dict(make_head(num_classes=7), weights, strict=False)


def test_random_start_says_no_object(make_head):
    head = make_head(num_classes=7)
    head.init_weights()
    head.eval()
    maps = head(tuple(torch.randn(2, 8, size, size) for size in (2, 4, 8)))
    assert all(torch.allclose(level[:, 4].sigmoid(), torch.tensor(0.01), atol=0.01) for level in maps)
    assert all(conv.bias[[0, 5, 9]].abs().max() == 0 for conv in head.predict_convs)


def test_loss_and_predict_agree_with_their_parts(make_head):
    head = make_head(num_classes=7).eval()
    feats = tuple(torch.randn(1, 8, size, size) for size in (2, 4, 8))
    sample = DetDataSample(gt_instances=objects([[5, 5, 40, 40]], [3]),
                           metainfo=dict(LETTERBOX_META, img_shape=(64, 64)))
    losses, found = head.loss_and_predict(feats, [sample])
    for key, value in head.loss(feats, [sample]).items():
        torch.testing.assert_close(losses[key], value)
    torch.testing.assert_close(found[0].bboxes, head.predict(feats, [sample])[0].bboxes)


def confident_map(head, boxes, labels):
    """Maps of a 64 x 64 input on which one stride-8 cell each predicts the given boxes."""
    maps = [torch.full((1, head.num_channels, size, size), -9.0) for size in (2, 4, 8)]
    for level in maps:
        level[:, :4] = 0
    for (x1, y1, x2, y2), label in zip(boxes, labels):
        col, row = int((x1 + x2) / 16), int((y1 + y2) / 16)
        raw = head.bbox_coder.encode(torch.tensor([[col, row, 8]]), torch.tensor([[x1, y1, x2, y2]]).float(),
                                     torch.tensor([[13.0, 28.0]]))
        maps[2][0, :4, row, col] = raw[0]
        maps[2][0, [4, 6, 8 + label], row, col] = 9.0
    return maps


def test_clipped_after_suppression_and_mapped_back(make_head):
    head = make_head(num_classes=2)
    maps = confident_map(head, [(-6, 20, 20, 44), (30, 10, 44, 38)], [0, 1])
    meta = dict(img_shape=(64, 64), ori_shape=(100, 200), scale_factor=(0.32, 0.32),
                pad_param=np.array([16, 16, 0, 0], dtype=np.float32))
    inside, = head.predict_by_feat(maps, [meta])
    order = inside.labels.argsort()
    torch.testing.assert_close(inside.bboxes[order], torch.tensor([[0.0, 20, 20, 44], [30, 10, 44, 38]]),
                               atol=1e-3, rtol=0)
    back, = head.predict_by_feat(maps, [meta], rescale=True)
    expected = torch.tensor([[0.0, 4 / 0.32, 20 / 0.32, 28 / 0.32], [30 / 0.32, 0, 44 / 0.32, 22 / 0.32]])
    torch.testing.assert_close(back.bboxes[back.labels.argsort()], expected, atol=1e-2, rtol=0)


def test_test_cfg_limits(make_head):
    head = make_head(num_classes=2)
    maps = confident_map(head, [(2, 2, 15, 30), (40, 30, 53, 58), (30, 2, 43, 30)], [0, 1, 1])
    meta = dict(img_shape=(64, 64))
    assert len(head.predict_by_feat(maps, [meta])[0]) == 3
    assert len(head.predict_by_feat(maps, [meta], cfg=dict(max_per_img=1))[0]) == 1
    assert len(head.predict_by_feat(maps, [meta], cfg=dict(score_thr=0.9999))[0]) == 0
    assert len(head.predict_by_feat(maps, [meta], with_nms=False)[0]) == 3
    assert len(head.predict_by_feat(maps, [meta], cfg=dict(nms_pre=2))[0]) == 2


def test_multi_label_gives_a_candidate_for_each_class(make_head):
    head = make_head(num_classes=3)
    maps = confident_map(head, [(2, 2, 15, 30)], [1])
    row, col = (maps[2][0, 4] > 0).nonzero()[0].tolist()
    maps[2][0, 8:11, row, col] = torch.tensor([2.0, 3.0, -50.0])
    meta, options = dict(img_shape=(64, 64)), dict(nms=dict(class_agnostic=False))
    one, = head.predict_by_feat(maps, [meta], cfg=options)
    many, = head.predict_by_feat(maps, [meta], cfg=dict(options, multi_label=True))
    assert one.labels.tolist() == [1] and many.labels.tolist() == [1, 0]
    torch.testing.assert_close(many.bboxes, one.bboxes.expand(2, 4))
    torch.testing.assert_close(many.scores, one.scores * torch.tensor([1.0, math.exp(-1)]))
    with pytest.raises(UserError, match=r'multi_label=True needs nms\.class_agnostic=False'):
        head.predict_by_feat(maps, [meta], cfg=dict(multi_label=True))


def test_nan_maps_detect_nothing(make_head):
    maps = [torch.full((1, 28, size, size), math.nan) for size in (2, 4, 8)]
    assert len(make_head().predict_by_feat(maps, [dict(img_shape=(64, 64))])[0]) == 0


def test_ignored_regions_spare_cells(make_head):
    head = make_head(num_classes=2)
    maps = confident_map(head, [(10, 10, 30, 40)], [0])
    nothing, region = objects([], []), objects([[10, 10, 30, 40]], [0])
    counted = head.loss_by_feat(maps, [nothing], [{}])['loss_obj']
    spared = head.loss_by_feat(maps, [nothing], [{}], [region])['loss_obj']
    assert counted - spared == pytest.approx(0.5 * 9.0, abs=0.01)
    assert tuple(spared_objects([nothing, region], [region, nothing]).shape) == (2, 1, 4)


def test_bridges(make_head):
    from mgdet_plugin.models import MultiGridHead
    from tests.conftest import ANCHORS, STRIDES
    head = MultiGridHead(80, (4, 4, 4), ANCHORS, STRIDES)
    assert head.bridge_channels == (704, 352, 176)
    with pytest.raises(UserError, match='got 3, 2, 3 and 3'):
        MultiGridHead(80, (4, 4, 4), ANCHORS, STRIDES, bridge_channels=(8, 8))


@pytest.mark.parametrize(('fields', 'message'), [
    (dict(num_classes=0), 'got 0'), (dict(test_cfg=dict(nms=dict(type='fast'))), "'fast'"),
    (dict(test_cfg=dict(nms=dict(iou_thr=0.5))), 'iou_thr'),
    (dict(test_cfg=dict(score_thr='0.1')), "score_thr must be a number, got '0.1'"),
    (dict(test_cfg=dict(max_per_img=0)), 'max_per_img must be a whole number from 1, got 0'),
    (dict(bbox_coder=dict(type='MultiGridBBoxCoder', anchor_use='expected')), 'iou_loss=None')])
def test_bad_fields(make_head, fields, message):
    with pytest.raises(UserError, match=message):
        make_head(**fields)


def test_one_use_softmax_for_loss_and_coder(make_head):
    assert make_head().bbox_coder.use_softmax
    assert not make_head(loss=dict(use_softmax=False)).bbox_coder.use_softmax
    assert make_head().assigner.strides == (32, 16, 8)
