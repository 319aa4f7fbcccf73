"""Suppression in a graph keeps what the head's own keeps."""
import pytest
import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.deploy.export.suppression_graph import check_suppression, suppressed
from mgdet_plugin.models.multigrid_head import TEST_CFG, MultiGridHead

SIDE = 100


def decoded(images, cells, classes=3, seed=0):
    """Crowded boxes with scores and class probabilities."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, cells, 2, generator=generator) * SIDE * 0.6
    boxes = torch.cat((corner, corner + 5 + torch.rand(images, cells, 2, generator=generator) * 30), 2)
    probs = torch.rand(images, cells, classes, generator=generator).softmax(-1)
    return boxes, torch.rand(images, cells, generator=generator), probs


@pytest.mark.parametrize('nms', [
    dict(type='diou', iou_threshold=0.45), dict(type='standard', overlap='iol', class_agnostic=False),
    dict(type='cluster', mode='weighted', class_agnostic=False), dict(type='cluster', mode='weighted', overlap='iol')])
@pytest.mark.parametrize('fields', [{}, dict(multi_label=True, nms_pre=40), dict(score_thr=0.9, max_per_img=5)])
def test_a_graph_keeps_what_the_head_keeps(nms, fields):
    settings = {**TEST_CFG, **fields, 'nms': nms}
    if settings['multi_label'] and nms.get('class_agnostic', True):
        settings['multi_label'] = False  # refused together
    cells = decoded(3, 80)
    cells[1][2] = 0.0  # a picture without any
    wanted = MultiGridHead.predict_decoded(cells, [dict(img_shape=(SIDE, SIDE))] * 3, settings)
    boxes, scores, labels = suppressed(cells, settings)
    for image, each in enumerate(wanted):
        there = scores[image] > settings['score_thr']
        assert int(there.sum()) == len(each) > (-1 if image == 2 else 0)
        torch.testing.assert_close(boxes[image][there].clamp(0, SIDE), each.bboxes, rtol=0, atol=1e-4)
        assert scores[image][there].equal(each.scores) and labels[image][there].equal(each.labels)


def test_what_no_graph_holds_is_refused():
    for nms in (dict(type='soft'), dict(type='wbf'), dict(type='cluster', mode='score_penalty')):
        with pytest.raises(UserError, match=r'--nms takes .*leave --nms out'):
            check_suppression({**TEST_CFG, 'nms': nms})
